//go:build twin

package twin

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// spec is what RFC 9777 (and in MLDv1 mode RFC 2710) has a listener say, as simply as it can be put: it does not know
// when something is sent, but given that something is sent now, what it has to be. For the kernel's twin it also knows
// the situations in which the kernel is excused, and by which deviation.
type spec struct {
	kernel  bool
	rv      int // Robustness Variable
	qqi     int // Querier's Query Interval in seconds
	v1      bool
	groups  map[name]*state
	general *answer // to a General Query
}

// state is that of one group.
type state struct {
	sockets  map[int]filter
	filter               // of the interface
	modes    int         // Filter Mode Retransmission Counter
	counts   map[set]int // Source Retransmission Counters
	answer   *answer
	reports  int             // MLDv1: Reports to come
	dones    int             // MLDv1: Dones to come
	deviated map[string]bool // deviations of the kernel met in this round

	// The deviations that excuse the kernel from telling changes and from answering, until the round ends; "" is none.
	changesExcused, answersExcused string

	suppressed   string // MLDv1: another node was the last to report the group; by V1-18 or a deviation
	lastReporter bool   // the flag of that name, as the kernel has it
	marked       bool   // the kernel may have notes left of sources that were asked for (T5)
}

// answer is a pending answer to a query.
type answer struct {
	sources  set // those asked for; none: the whole record
	latest   time.Time
	optional bool     // it may fall away
	others   []answer // what it may be as well
}

func newSpec(kernel bool) *spec {
	s := &spec{kernel: kernel, rv: 2, qqi: 125, groups: map[name]*state{}}
	for n := range addresses {
		s.groups[n] = &state{sockets: map[int]filter{}, counts: map[set]int{}}
		s.groups[n].deviated = map[string]bool{}
	}
	return s
}

func (s *spec) clone() *spec {
	c := *s
	if s.general != nil {
		a := *s.general
		c.general = &a
	}
	c.groups = map[name]*state{}
	for n, g := range s.groups {
		d := *g
		d.sockets, d.counts, d.deviated = maps.Clone(g.sockets), maps.Clone(g.counts), maps.Clone(g.deviated)
		if g.answer != nil {
			a := *g.answer
			d.answer = &a
		}
		c.groups[n] = &d
	}
	return &c
}

// merged is V2-16, RFC 9777 section 4.2.
func (g *state) merged() filter {
	var f filter
	var included set
	excluded := allSources
	for _, s := range g.sockets {
		if s.exclude {
			f.exclude = true
			excluded &= s.sources
		} else {
			included |= s.sources
		}
	}
	if f.exclude {
		f.sources = excluded &^ included
	} else {
		f.sources = included
	}
	return f
}

// version is that of the mode.
func (s *spec) version() int {
	if s.v1 {
		return 1
	}
	return 2
}

// excuseChanges excuses the kernel from telling the changes of a group as they are, until the round ends.
func (s *spec) excuseChanges(g *state, deviation string) {
	if s.kernel {
		g.changesExcused, g.deviated[deviation] = deviation, true
		g.modes, g.counts = 0, map[set]int{}
	}
}

// excuseAnswers excuses the kernel from answering specific queries for a group as it should, until the round ends.
func (s *spec) excuseAnswers(g *state, deviation string) {
	if s.kernel {
		g.answersExcused, g.deviated[deviation] = deviation, true
		if g.answer != nil {
			g.answer.optional = true
		}
	}
}

// listen is a change of one socket's filter (RFC 9777 section 6.1).
func (s *spec) listen(socket int, n name, f filter) {
	g := s.groups[n]
	before := g.filter
	if f.wants() {
		g.sockets[socket] = f
	} else {
		delete(g.sockets, socket)
	}
	g.filter = g.merged()
	if s.v1 {
		switch {
		case !before.wants() && g.wants(): // V2-50, V1-6
			g.reports = 2
		case before.wants() && !g.wants(): // V1-9, V1-31
			g.reports, g.dones = 0, 1
			if g.suppressed == "" && s.kernel && !g.lastReporter {
				g.suppressed = "T10"
			}
			switch g.suppressed {
			case "":
			case "V1-18":
				g.dones = 0
			default:
				g.dones = 0
				g.deviated[g.suppressed] = true
			}
			g.suppressed, g.lastReporter = "", false
		}
		if s.kernel && g.wants() {
			g.changesExcused = "T8"
		}
		return
	}
	joined, left := !before.wants() && g.wants(), before.wants() && !g.wants()
	pendingMode := g.modes > 0
	if g.exclude != before.exclude {
		g.modes = s.rv // V2-29
	} else {
		for i := range 8 { // V2-28
			if bit := set(1) << i; (g.sources^before.sources)&bit != 0 {
				g.counts[bit] = s.rv
			}
		}
	}
	if g.answer != nil && g.said(g.answer) == "" || left && g.answer != nil {
		g.answer.optional = true
	}
	switch {
	case joined && !g.exclude && pendingMode:
		s.excuseChanges(g, "T1")
	case left && !before.exclude && pendingMode:
		s.excuseChanges(g, "T2")
	}
	if left {
		g.suppressed, g.lastReporter, g.marked = "", false, false
	}
	if g.changesExcused != "" {
		g.modes, g.counts = 0, map[set]int{}
	}
	if g.answer != nil && g.answer.sources != 0 && g.filter != before {
		s.excuseAnswers(g, "T5")
		g.marked = s.kernel && g.wants()
	}
}

// enterV1 is the change to MLDv1 mode, which cancels all that is pending (V2-53).
func (s *spec) enterV1() {
	s.v1 = true
	s.general = nil
	for _, g := range s.groups {
		switch {
		case !g.untold():
		case g.wants() && s.kernel:
			g.changesExcused = "T8"
		case !g.wants() && s.kernel:
			g.deviated["L14"] = true
		case !g.wants():
			g.dones = 1 // so that the leave is told after all
		}
		g.modes, g.counts = 0, map[set]int{}
		if s.kernel && g.answer != nil {
			g.reports = 1
			g.deviated["T7"] = true
		}
		g.answer = nil
	}
}

// heard is an MLDv1 Report of another node (RFC 2710 section 4, RFC 9777 section 8.2.2).
func (s *spec) heard(n name) {
	g := s.groups[n]
	switch {
	case !g.wants():
	case n.sourceSpecific() && s.kernel:
		g.deviated["T12"] = true
		g.reports, g.suppressed, g.answer = 0, "T12", nil
	case n.sourceSpecific(): // V2-55
	case !s.v1 && s.kernel:
		if g.answer != nil {
			g.deviated["L17"] = true
		}
		g.answer, g.lastReporter = nil, false
	case !s.v1:
	case g.reports > 0: // V1-18
		g.reports, g.suppressed = 0, "V1-18"
	case s.kernel: // V1-19
		g.suppressed = "L16"
	}
}

// query is a Query that has been read (RFC 9777 section 6.2).
func (s *spec) query(q query, now time.Time) {
	latest := now.Add(q.delay)
	if q.version == 1 && s.kernel && s.qqi == 0 { // T11: the kernel is back at once
		for n, g := range s.groups {
			if g.wants() && (q.group == nobody || q.group == n) && n != barrier {
				g.answer = &answer{latest: latest, optional: true}
				g.deviated["T11"] = true
			}
		}
		return
	}
	if q.version == 1 && !s.v1 {
		s.enterV1()
	}
	if s.v1 {
		for n, g := range s.groups {
			if g.wants() && (q.group == nobody || q.group == n) && g.reports == 0 && n != barrier {
				g.reports = 1
			}
		}
		return
	}
	s.qqi = q.qqi
	switch {
	case q.qrv != 0 && s.kernel:
		s.rv = max(q.qrv, 2) // L2
	case q.qrv != 0:
		s.rv = q.qrv // V2-13
	case s.kernel: // T9: keeps the last one
	default:
		s.rv = 2
	}
	if q.group == nobody {
		switch {
		case s.general == nil:
			s.general = &answer{latest: latest}
		case s.kernel && latest.After(s.general.latest): // L11
			s.general = &answer{latest: latest}
		case latest.Before(s.general.latest): // V2-36
			s.general = &answer{latest: latest}
		}
		for _, g := range s.groups {
			if g.answer != nil && g.answer.sources != 0 && !g.exclude {
				s.excuseAnswers(g, "T3")
			}
		}
		return
	}
	g := s.groups[q.group]
	if !g.wants() {
		return // V2-34
	}
	a := &answer{sources: q.sources, latest: latest, optional: s.general != nil /* V2-35 */}
	if s.kernel && a.optional {
		g.deviated["L12"] = true
	}
	if a.optional && q.sources != 0 && !g.exclude {
		s.excuseAnswers(g, "T3")
	}
	if g.marked && q.sources != 0 && !g.exclude {
		s.excuseAnswers(g, "T5")
	}
	matches := g.said(a) != ""
	if s.kernel && q.sources != 0 && g.exclude && matches {
		a.sources = 0
		g.deviated["T4"] = true
	}
	if !matches {
		if g.answer != nil && g.answer.sources != 0 && !g.exclude {
			s.excuseAnswers(g, "T6")
		}
		return // V2-34
	}
	if g.answer == nil { // V2-37
		g.answer = a
		return
	}
	if a.optional { // if rule 1 applied, the older one stays as it was
		g.answer.others = append(g.answer.others, *g.answer)
	}
	if a.sources == 0 || g.answer.sources == 0 { // V2-38
		g.answer.sources = 0
	} else { // V2-39
		g.answer.sources |= a.sources
	}
	if latest.Before(g.answer.latest) && !a.optional {
		g.answer.latest = latest
	}
}

// said is the answer as it would be now; "" if there is none (V2-41, V2-42).
func (g *state) said(a *answer) string { return saying(g.records(a)) }

func (g *state) records(a *answer) []record {
	r := record{kind: isIn}
	switch {
	case !g.wants():
		return nil
	case a.sources == 0 && g.exclude:
		return []record{{kind: isEx, sources: g.sources}}
	case a.sources == 0:
		r.sources = g.sources
	case g.exclude:
		r.sources = a.sources &^ g.sources
	default:
		r.sources = a.sources & g.sources
	}
	if r.sources == 0 { // V2-43
		return nil
	}
	return []record{r}
}

// unsure takes over what another spec, with the same events in another order, has pending and this one has not, and
// the other way around, as answers that may fall away.
func (s *spec) unsure(o *spec) {
	either := func(a, b *answer) *answer {
		switch {
		case a == nil && b != nil:
			a = b
			a.optional = true
		case a != nil && b == nil:
			a.optional = true
		}
		return a
	}
	s.general = either(s.general, o.general)
	for n, g := range s.groups {
		g.answer = either(g.answer, o.groups[n].answer)
	}
}

// transmission is the State Change Report that is due for the group (V2-29 to V2-31).
func (g *state) transmission() string {
	var list []record
	if g.modes > 0 {
		kind := toIn
		if g.exclude {
			kind = toEx
		}
		list = append(list, record{kind: kind, sources: g.sources})
	} else {
		var forward, stop set
		for bit, n := range g.counts {
			switch {
			case n == 0:
			case (g.sources&bit != 0) != g.exclude:
				forward |= bit
			default:
				stop |= bit
			}
		}
		if forward != 0 {
			list = append(list, record{kind: allow, sources: forward})
		}
		if stop != 0 {
			list = append(list, record{kind: block, sources: stop})
		}
	}
	return saying(list)
}

func (g *state) transmitted() {
	g.modes, g.reports, g.dones = max(0, g.modes-1), max(0, g.reports-1), max(0, g.dones-1)
	for bit, n := range g.counts { // V2-28
		g.counts[bit] = max(0, n-1)
	}
}

// sent is a packet of the twin's. The error says what is wrong with it.
func (s *spec) sent(p packet) error {
	groups := p.byGroup()
	_, background := groups[other]
	general := background && p.records[0].current()
	var errs []error
	for _, n := range slices.Sorted(maps.Keys(groups)) {
		if n == other {
			continue
		}
		g, first, text := s.groups[n], groups[n][0], saying(groups[n])
		switch {
		case n.helper(): // they only serve the others
			if !first.current() {
				g.transmitted()
			}
		case first.kind == report || first.kind == done:
			errs = append(errs, g.sentV1(n, first.kind))
		case general: // see below
		case first.current():
			errs = append(errs, g.answered(n, text))
		default:
			errs = append(errs, g.told(n, text))
		}
	}
	if !general {
		return errors.Join(errs...)
	}
	if s.general == nil {
		errs = append(errs, errors.New("a general answer to nothing"))
	}
	s.general = nil
	for n, g := range s.groups { // V2-40
		text, want := saying(groups[n]), g.said(&answer{})
		switch {
		case n.helper() || g.answersExcused != "":
		case g.answer != nil && text == saying(append(g.records(&answer{}), g.records(g.answer)...)):
			g.answer = nil // both in one Report
		case text != want:
			errs = append(errs, fmt.Errorf("%s: general answer %q, want %q", n, text, want))
		}
	}
	return errors.Join(errs...)
}

// sentV1 is a message of MLDv1.
func (g *state) sentV1(n name, kind int) error {
	left := &g.dones
	if kind == report {
		left = &g.reports
		g.suppressed, g.lastReporter = "", true
	}
	*left--
	if *left < 0 {
		return fmt.Errorf("%s: a %s without a reason", n, kinds[kind])
	}
	return nil
}

// answered is an answer to a specific Query.
func (g *state) answered(n name, text string) error {
	a := g.answer
	g.answer, g.lastReporter = nil, true // V2-44
	switch {
	case g.answersExcused != "":
	case a == nil:
		return fmt.Errorf("%s: %s answers nothing", n, text)
	case text != g.said(a) && !slices.ContainsFunc(a.others, func(o answer) bool { return text == g.said(&o) }):
		return fmt.Errorf("%s: answered %s, want %q", n, text, g.said(a))
	}
	return nil
}

// told is a State Change Report.
func (g *state) told(n name, text string) error {
	if g.changesExcused != "" {
		g.deviated[g.changesExcused] = true
		return nil
	}
	want := g.transmission()
	if text != want {
		return fmt.Errorf("%s: told %s, want %q", n, text, want)
	}
	g.transmitted()
	return nil
}

// untold tells whether there is a change of the group still to be told, or a message of MLDv1 to be sent.
func (g *state) untold() bool {
	counts := slices.Collect(maps.Values(g.counts))
	return slices.Max(append(counts, g.modes, g.reports, g.dones)) > 0
}

// owes tells whether an answer has to come.
func (s *spec) owes() bool {
	for _, g := range s.groups {
		if g.owes() {
			return true
		}
	}
	return s.general != nil && !s.general.optional
}

func (g *state) owes() bool { return g.answer != nil && !g.answer.optional && g.said(g.answer) != "" }

// left is what is still to be told.
func (s *spec) left() string {
	text := ""
	if s.general != nil {
		text += "general answer; "
	}
	for n, g := range s.groups {
		if g.owes() {
			text += fmt.Sprintf("%s: %s; ", n, g.said(g.answer))
		}
		if g.untold() {
			text += fmt.Sprintf("%s: %s, %d Reports, %d Dones; ", n, g.transmission(), g.reports, g.dones)
		}
	}
	return text
}

// quiet tells whether every change has been told.
func (s *spec) quiet() bool {
	for _, g := range s.groups {
		if g.untold() {
			return false
		}
	}
	return true
}

// answersDue is the latest time of a pending answer; false: there is none.
func (s *spec) answersDue() (time.Time, bool) {
	var latest time.Time
	if s.general != nil {
		latest = s.general.latest
	}
	for _, g := range s.groups {
		if g.answer != nil && g.answer.latest.After(latest) {
			latest = g.answer.latest
		}
	}
	return latest, !latest.IsZero()
}

// endRound says what should have been answered by now and was not, and ends what a round excuses.
func (s *spec) endRound() error {
	if s.general != nil && !s.general.optional {
		return errors.New("a General Query is not answered")
	}
	s.general = nil
	for n, g := range s.groups {
		if g.untold() && !n.helper() {
			return fmt.Errorf("%s: %q is not told", n, g.transmission())
		}
		if g.owes() {
			return fmt.Errorf("%s: not answered, want %s", n, g.said(g.answer))
		}
		g.answer = nil
		g.deviated = map[string]bool{}
		if !s.v1 { // in MLDv1 mode the kernel keeps it for later (T8)
			g.changesExcused, g.answersExcused = "", ""
		}
	}
	return nil
}
