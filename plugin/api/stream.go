package api

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// A Line is what follows the answer to OpList, OpGroups and OpWatch, one in each line of at most MaxLine bytes. Exactly
// one field is set beside V.
type Line struct {
	V          int               `json:"v"`                    // Version; WriteLine fills it in
	Attachment *AttachmentStatus `json:"attachment,omitempty"` // OpList
	Group      *GroupStatus      `json:"group,omitempty"`      // OpGroups
	Event      *Event            `json:"event,omitempty"`      // OpWatch
	Error      *types.Error      `json:"error,omitempty"`      // why there is no more; nothing follows
	End        bool              `json:"end,omitempty"`        // that was all; of OpWatch there is no end
}

// Interface is a network interface that a listener is at work on.
type Interface struct {
	Netns  string `json:"netns"`       // path of its namespace, as the runtime or the operator gave it: a label
	Cookie uint64 `json:"netnsCookie"` // the kernel's number of the namespace, which is never used twice
	Index  int    `json:"ifindex"`     // in the namespace
	Name   string `json:"ifname"`      // its name now
}

// Values of AttachmentStatus.State. During duplicate address detection an attachment is ready as well if its groups are
// forwarded: bridges take what is reported from "::".
const (
	StateReady    = "ready"    // the link is up, and every declared group is reported and, on a bridge, forwarded
	StateDegraded = "degraded" // something of that is not so; Reason says what
	StateEnded    = "ended"    // there is no listener, because its interface is gone or for another Reason
)

// AttachmentStatus describes an attachment and the interface that it is for. Two attachments of one interface share
// everything but their groups.
type AttachmentStatus struct {
	Attachment
	Interface Interface `json:"interface"`
	Since     time.Time `json:"since"`            // when it was added
	State     string    `json:"state"`            // one of the State constants
	Reason    string    `json:"reason,omitempty"` // in words; empty if it is ready

	KernelReports string     `json:"kernelReports"`            // in effect: KernelReportsMute or KernelReportsKeep
	Muted         uint64     `json:"muted"`                    // reports of the kernel that were dropped
	MLDVersion    int        `json:"mldVersion"`               // that is spoken now, 1 or 2
	VersionReason string     `json:"mldVersionReason"`         // in words
	VersionUntil  time.Time  `json:"mldVersionUntil,omitzero"` // when MLDv1 ends that a querier has caused, if it asks no more
	Robustness    int        `json:"robustness"`               // Robustness Variable in force
	Source        netip.Addr `json:"source,omitzero"`          // that messages are sent from; absent: no valid link-local address
	Querier       *Querier   `json:"querier,omitempty"`        // who asked last on this interface; absent: nobody yet

	Declared int `json:"declared"` // groups of this attachment
	Wanted   int `json:"wanted"`   // multicast addresses that anybody wants on the interface, but for those never reported
	Reported int `json:"reported"` // of these, those that are reported

	Bridge       *Bridge `json:"bridge,omitempty"`       // absent: not the port of a bridge of the host
	BridgeReason string  `json:"bridgeReason,omitempty"` // why there may be one though none is seen; in words
}

// Querier is who has sent the last Query that was heard.
type Querier struct {
	Address    netip.Addr `json:"address"`
	MLDVersion int        `json:"mldVersion"` // of the Query
	Heard      time.Time  `json:"heard"`
}

// Bridge is a bridge that an interface is plugged into.
type Bridge struct {
	Name       string     `json:"name"`
	Port       string     `json:"port"`             // the host's end of the container's veth
	Forwarding bool       `json:"forwarding"`       // the port passes frames
	Snooping   bool       `json:"snooping"`         // else the bridge floods
	MLDVersion int        `json:"mldVersion"`       // of its snooping; in version 1 it knows no sources
	Querier    netip.Addr `json:"querier,omitzero"` // that the bridge knows; absent: none, and then it floods
}

// Filter says from which sources a group is wanted, reported or forwarded.
type Filter struct {
	Mode    Mode         `json:"mode"`
	Sources []netip.Addr `json:"sources,omitempty"` // sorted
	Omitted int          `json:"omitted,omitempty"` // how many more sources there are than MaxSources
}

// MaxSources is how many sources a Filter lists, so that a line does not become too long.
const MaxSources = 256

// AnySource tells whether the filter lets every source in.
func (f Filter) AnySource() bool { return f.Mode == Exclude && len(f.Sources) == 0 }

// GroupStatus describes a multicast address on an interface: what is wanted, what is reported and what the bridge
// knows, side by side.
type GroupStatus struct {
	Interface   Interface    `json:"interface"`
	Attachments []Attachment `json:"attachments"` // all those of the interface
	Group       netip.Addr   `json:"group"`

	Wanted     []Want  `json:"wanted,omitempty"`     // by whom; absent: by nobody
	Reported   *Filter `json:"reported,omitempty"`   // absent: it is not
	ReportedBy string  `json:"reportedBy,omitempty"` // ByListener or ByKernel; absent if it is not reported
	MDB        *MDB    `json:"mdb,omitempty"`        // absent: the bridge has no entry, or there is no bridge

	Marks []Mark `json:"marks,omitempty"` // where these disagree, and why
}

// Values of Want.By and GroupStatus.ReportedBy.
const (
	ByKernel     = "kernel"     // the container's: the joins of all applications, and of mldd for groups with delivery
	ByAttachment = "attachment" // declared
	ByListener   = "listener"   // ours
)

// Want is what one party wants of a group.
type Want struct {
	By         string      `json:"by"`                   // ByKernel or ByAttachment
	Attachment *Attachment `json:"attachment,omitempty"` // that declares it
	Deliver    bool        `json:"deliver,omitempty"`    // declared with delivery
	Filter
}

// MDB is what the bridge's multicast database has of a group on the interface's port.
type MDB struct {
	Mode      Mode         `json:"mode"`                // of the entry for any source; include if there is none
	Sources   []netip.Addr `json:"sources,omitempty"`   // that have an entry
	Blocked   []netip.Addr `json:"blocked,omitempty"`   // that an entry keeps out
	Omitted   int          `json:"omitted,omitempty"`   // how many more of both there are than MaxSources
	Permanent bool         `json:"permanent,omitempty"` // made by hand
	Expires   Duration     `json:"expires,omitempty"`   // until the last of the entries ages; absent if none does
}

// Mark is a disagreement. A fault keeps data away that is wanted, or will; the others explain why the views differ
// although everything is as it should be, or more arrives than is wanted.
type Mark struct {
	Code  string `json:"code"`  // one of the Mark constants
	Fault bool   `json:"fault"` // always the same for a code
	Text  string `json:"text"`  // in words
}

// Values of Mark.Code. Codes are stable, texts are not.
const (
	MarkNeverReported  = "never-reported"  // ff02::1 and scopes 0 and 1
	MarkIPv6Off        = "ipv6-off"        // fault, not reported: IPv6 is off on the interface
	MarkLinkDown       = "link-down"       // fault, not reported
	MarkNoLinkLocal    = "no-link-local"   // fault, not reported: no valid address to report from
	MarkTentative      = "tentative"       // not reported from a valid address yet: duplicate address detection is at work
	MarkSendRefused    = "send-refused"    // fault, not reported: the interface did not take the Report
	MarkReportDue      = "report-due"      // fault, not reported: it is to come
	MarkNotHeld        = "not-held"        // fault, not reported: the listener knows nothing of it
	MarkNotJoined      = "not-joined"      // fault: declared with delivery, and the kernel has not joined
	MarkNotDelivered   = "not-delivered"   // declared without delivery, and no application has joined
	MarkSnoopingOff    = "snooping-off"    // not in the MDB: there is none, the bridge floods
	MarkTableFull      = "table-full"      // not in the MDB: it was full, and the bridge floods since
	MarkNoQuerier      = "no-querier"      // not in the MDB: the bridge knows no querier and floods
	MarkPortFull       = "port-full"       // fault, not in the MDB: the port may have no more entries
	MarkPortDown       = "port-down"       // fault: the bridge's port does not forward
	MarkNoPort         = "no-port"         // fault: what was a port of a bridge at the ADD is none any more
	MarkNotInMDB       = "not-in-mdb"      // fault, not in the MDB although it is reported
	MarkSourcesMissing = "sources-missing" // fault: in the MDB, but not for all sources that are wanted
	MarkSourcesMLDv1   = "sources-mldv1"   // MLDv1 is spoken and names no sources: data comes from any source
	MarkSourcesBridge  = "sources-bridge"  // the bridge speaks MLDv1 and keeps no sources: data comes from any source
	MarkSourcesAny     = "sources-any"     // sources are named, and another party wants any, or its sources are unknown
	MarkBridgeUnseen   = "bridge-unseen"   // nothing is known of an MDB: the bridge may be in another namespace
	MarkUnwanted       = "unwanted"        // in the MDB, and nobody wants it
)

// faults are the codes of faults.
var faults = map[string]bool{
	MarkIPv6Off: true, MarkLinkDown: true, MarkNoLinkLocal: true, MarkSendRefused: true, MarkReportDue: true,
	MarkNotHeld: true, MarkNotJoined: true, MarkPortFull: true, MarkPortDown: true, MarkNoPort: true, MarkNotInMDB: true,
	MarkSourcesMissing: true,
}

// NewMark makes the mark of a code.
func NewMark(code, text string) Mark { return Mark{Code: code, Fault: faults[code], Text: text} }

// Values of Event.Kind, and the fields that tell more.
const (
	EventJoined     = "joined"     // the kernel holds Group with Filter: an application has joined, or changed its sources
	EventLeft       = "left"       // the kernel holds Group no longer; of what is never reported there are no events
	EventDeclared   = "declared"   // Attachment declares Group with Filter
	EventUndeclared = "undeclared" // Attachment declares Group no longer
	EventSent       = "sent"       // Message about Group, in version 2 with Record and Sources; Cause
	EventNotSent    = "not-sent"   // the interface did not take the message that was sent just now; Reason
	EventHeard      = "heard"      // a Query From a router for Group and Sources, or a General one; MLDVersion, MaxDelay
	EventSuppressed = "suppressed" // the Report of Group that was due is superfluous: a node, From, has sent one
	EventMuted      = "muted"      // the kernel's Message, as with sent, was dropped; not told where the settings say MLDv1 alone
	EventVersion    = "version"    // MLDVersion is spoken from now on
	EventLink       = "link"       // the interface has changed; Reason says how
	EventMDB        = "mdb"        // Bridge has an entry of Group on Port now, for Filter: any source, one, or all but one
	EventMDBGone    = "mdb-gone"   // Bridge has no longer that entry
	EventEnded      = "ended"      // the listener is gone; Reason
	EventLost       = "lost"       // Lost events, at least, are missing here: they came faster than they were read
)

// Event is something that has happened. Time and Kind are always there; Interface and Attachments, too, but for
// EventLost.
type Event struct {
	Time        time.Time    `json:"time"` // RFC 3339, in nanoseconds
	Kind        string       `json:"kind"` // one of the Event constants
	Interface   *Interface   `json:"interface,omitempty"`
	Attachments []Attachment `json:"attachments,omitempty"` // all those of the interface
	Attachment  *Attachment  `json:"attachment,omitempty"`
	Group       netip.Addr   `json:"group,omitzero"`
	Filter      *Filter      `json:"filter,omitempty"`
	Message     string       `json:"message,omitempty"` // "Report", "Done", "ReportV2"
	Record      string       `json:"record,omitempty"`  // type of the record: "TO_EX", as the RFCs have it
	Sources     []netip.Addr `json:"sources,omitempty"` // of the record or Query, MaxSources at most
	Cause       string       `json:"cause,omitempty"`   // one of the Cause constants
	From        netip.Addr   `json:"from,omitzero"`
	MLDVersion  int          `json:"mldVersion,omitempty"`
	MaxDelay    Duration     `json:"maxDelay,omitempty"` // Maximum Response Delay
	Bridge      string       `json:"bridge,omitempty"`
	Port        string       `json:"port,omitempty"`
	Reason      string       `json:"reason,omitempty"` // in words
	Lost        int          `json:"lost,omitempty"`
}

// Values of Event.Cause: why a message is sent.
const (
	CauseJoined    = "joined"    // MLDv1: the address is wanted from now on
	CauseRepeat    = "repeat"    // MLDv1: the same again, as Reports get lost
	CauseAnnounced = "announced" // MLDv1: sending has become possible, or the source address is another one
	CauseLeft      = "left"      // MLDv1: the address is wanted no longer
	CauseChanged   = "changed"   // MLDv2: what is wanted has changed, or is announced; and its repeats
	CauseAnswer    = "answer"    // a Query has asked
)

// Streams tells whether lines follow the answer to an op.
func Streams(op string) bool { return op == OpList || op == OpGroups || op == OpWatch }

// Stream sends a request that is answered by lines, and yields these until the daemon says that it has told all, or
// ctx ends. An error is the last thing that is yielded: a *types.Error is the daemon's, any other is about the exchange,
// and wraps that of ctx if that has ended. After an error, or if the loop is left early, the client is of no further
// use.
func (c *Client) Stream(ctx context.Context, r *Request) iter.Seq2[*Line, error] {
	return func(yield func(*Line, error) bool) {
		answer, err := c.Call(ctx, r)
		if err == nil && answer.Error != nil {
			err = answer.Error
		}
		stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		for err == nil {
			var line *Line
			if line, err = c.line(); err != nil {
				if ctx.Err() != nil {
					err = ctx.Err()
				}
				err = fmt.Errorf("mldd: %s: %w", r.Op, err)
				break
			}
			switch {
			case line.End:
				return
			case line.Error != nil:
				err = line.Error
			case !yield(line, nil):
				return
			}
		}
		yield(nil, err)
	}
}

func (c *Client) line() (*Line, error) {
	text, err := readLine(c.r)
	if err != nil {
		return nil, err
	}
	if err := checkVersion(text, "line", "daemon"); err != nil {
		return nil, err
	}
	var line Line
	if err := decodeStrictly(text, &line); err != nil {
		return nil, fmt.Errorf("line: %w", err)
	}
	return &line, nil
}

// WriteLine sends a line after an answer. The caller sets the deadline (net.Conn.SetWriteDeadline).
func WriteLine(conn *net.UnixConn, l *Line) error {
	line := *l
	line.V = Version
	text, err := json.Marshal(line)
	if err != nil {
		return err
	}
	return writeLine(conn, text, nil)
}
