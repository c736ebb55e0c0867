//go:build twin

package twin

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write DEVIATIONS.md anew")

// A deviation is something that the kernel does otherwise than the text wants it, or otherwise than ours where the
// text leaves a choice.
type deviation struct {
	id      string
	kernel  string // what the kernel does
	text    string // what the text says
	section string // of RFC 9777 where no other is named
	tests   []string
}

// deviations are those of Linux 6.18. Each has a scenario or a test that fails when the kernel has mended its ways.
var deviations = []deviation{
	{
		id: "L1", section: "6.1",
		kernel: "Waits for two ticks of its clock, 8 to 12 ms, before it tells a change; what happens meanwhile is " +
			"told as one change.",
		text: "A change is told immediately.",
	},
	{
		id: "L2", section: "9.1",
		kernel: "Takes a QRV of 1 for 2 (with `net.ipv6.mld_qrv` at its default).",
		text:   "The Robustness Variable SHOULD NOT be 1; ours follows the querier.",
	},
	{
		id: "L11", section: "6.2", tests: []string{"TestV2_36_Storm"},
		kernel: "Draws the delay of a general answer anew with every General Query, so that an answer may never come.",
		text: "An answer that is due sooner than the new delay stands (rule 1), one that is due later is brought " +
			"forward (rule 2).",
	},
	{
		id: "L12", section: "6.2",
		kernel: "Answers a specific Query even if a general answer that says the same is due sooner.",
		text:   "No additional response (rule 1).",
	},
	{
		id: "L14", section: "8.2.1",
		kernel: "Drops what it has not told of a leave when an MLDv1 Query comes.",
		text: "All that is pending is cancelled, so this is the letter of it; ours sends a Done, so that the leave " +
			"is told.",
	},
	{
		id: "L16", section: "RFC 2710 5",
		kernel: "Takes another node's MLDv1 Report for an idle address for the latest: its own leave is silent.",
		text:   "A Report that is heard in Idle Listener state is ignored.",
	},
	{
		id: "L17", section: "8.2.2",
		kernel: "An MLDv1 Report of another node cancels a pending answer in MLDv2 mode.",
		text:   "MAY be suppressed.",
	},
	{
		id: "T1", section: "6.1",
		kernel: "When an address is left (TO_IN) and joined again for sources before that was told as often as it " +
			"should be, forgets the filter mode change: ALLOW(sources) at once.",
		text: "While the Filter Mode Retransmission Counter runs, every Report has a filter mode change record: " +
			"TO_IN(sources).",
	},
	{
		id: "T2", section: "6.1",
		kernel: "When an address that has changed to INCLUDE is left before that was told as often as it should be, " +
			"forgets the filter mode change: BLOCK(sources) at once. The sources excluded before are among them, " +
			"one that is in both lists twice.",
		text: "TO_IN({}) first; then BLOCK of the sources that were left.",
	},
	{
		id: "T3", section: "6.3",
		kernel: "A general answer while a source-specific one is pending has only the sources asked for, and the " +
			"specific answer after it has all.",
		text: "A general answer has the whole record; the specific one the sources asked for.",
	},
	{
		id: "T4", section: "6.3",
		kernel: "Answers a source-specific Query for an address in EXCLUDE mode by IS_EX of the whole record.",
		text:   "IS_IN of the sources asked for that are not excluded.",
	},
	{
		id: "T5", section: "6.3, 5.2.13",
		kernel: "Notes at once which of the sources asked for are wanted: one joined before the answer is not in it, " +
			"and if those noted are left the answer is an empty IS_IN. A note that the answer did not use, because the mode " +
			"was EXCLUDE, adds its source to a later one.",
		text: "The answer is made of the sources asked for and the state when it is sent; IS_IN is never empty.",
	},
	{
		id: "T6", section: "6.2",
		kernel: "A further source-specific Query of which no source is wanted has the pending answer list all " +
			"sources.",
		text: "It does not correspond to anything listened to, and changes nothing.",
	},
	{
		id: "T7", section: "8.2.1",
		kernel: "A specific answer that is pending when the mode changes to MLDv1 is sent, as an MLDv1 Report.",
		text:   "All pending responses are cancelled.",
	},
	{
		id: "T8", section: "8.2.1",
		kernel: "Changes that were not told to the end before MLDv1 mode, and changes in it, are told after the " +
			"return to MLDv2, with the next change of any address.",
		text: "All retransmissions are cancelled; nothing changes with the return.",
	},
	{
		id: "T9", section: "5.1.8, 9.1",
		kernel: "A QRV of 0 leaves the Robustness Variable as it was.",
		text:   "Not said for hosts. A router that is told no value takes its default, and so do we.",
	},
	{
		id: "T10", section: "8.2.1, RFC 2710 4",
		kernel: "In MLDv1 mode, leaves without a Done if it has not answered for the address yet since it joined it " +
			"in MLDv2 mode.",
		text: "The node that was the last to report sends a Done, and nobody else has reported the address.",
	},
	{
		id: "T11", section: "5.1.9, 9.12", tests: []string{"TestV2_14_QueryInterval0"},
		kernel: "Takes a QQIC of 0 for an interval of 0, so that an MLDv1 Query starts a timer that has ended.",
		text:   "Not said for hosts. A querier that is told no value takes its default, 125 s, and so do we.",
	},
	{
		id: "T12", section: "RFC 4604 2.2.1",
		kernel: "An MLDv1 Report of another node suppresses that of an SSM address, in both modes.",
		text:   "MUST NOT be suppressed.",
	},
	{
		id: "T13", section: "RFC 4604 2.1, 2.2.2", tests: []string{"TestV2_58_V2_75_SourceSpecific"},
		kernel: "Joins an SSM address without sources, and tells TO_EX.",
		text:   "SHOULD NOT send it, and SHOULD return an error.",
	},
}

// TestDeviations: every deviation is met in a test, every one that is met is known, and DEVIATIONS.md says so.
func TestDeviations(t *testing.T) {
	met := map[string][]string{}
	for _, s := range slices.Concat(changes, answers, older) {
		if s.deviation != "" {
			met[s.deviation] = append(met[s.deviation], s.name)
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Where the Linux kernel's listener differs\n\n"+
		"Found by holding the kernel's listener (Linux 6.18) against ours; every line is proved by the "+
		"scenarios named in it, which also\n"+
		"prove that ours does what the text says. Sections are those of RFC 9777. Written by `go test "+
		"./e2e/twin -run Deviations -update`.\n\n"+
		"| # | The kernel | The text | § | Scenarios |\n|---|---|---|---|---|\n")
	for _, d := range deviations {
		where := slices.Concat(met[d.id], d.tests)
		if len(where) == 0 {
			t.Errorf("%s is not met in any scenario", d.id)
		}
		delete(met, d.id)
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", d.id, d.kernel, d.text, d.section, strings.Join(where, "; "))
	}
	for id, where := range met {
		t.Errorf("%s, met in %q, is not in the table", id, where)
	}
	const file = "DEVIATIONS.md"
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), b.String()); diff != "" {
		t.Errorf("%s is old, run go test -run Deviations -update (-is +should be):\n%s", file, diff)
	}
}
