package listener_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// The situations of the IPv6 Ready (TAHI) conformance tests of MLDv2 listeners, under their numbers. The procedures
// and expectations are ours, from RFC 3810. Robustness is 2, the Unsolicited Report Interval 1 s, every delay the
// longest. A is s1,s3, B is s2,s3 and C mostly s3,s4.

// tahiChanges are groups 3.1 to 3.4: something is listened to (steps "subscriber filter", all told), and then the
// last step is taken. What it has told is told twice, a second apart; "" is nothing.
var tahiChanges = []struct{ part, steps, want string }{
	{"3.1.a", "1 IN()", ""},
	{"3.1.b", "1 IN(s1)", "ALLOW(ff05::8; s1)"},
	{"3.1.c", "1 EX()", "TO_EX(ff05::8)"},
	{"3.1.d", "1 EX(s1)", "TO_EX(ff05::8; s1)"},

	{"3.2.a", "1 IN(s1,s3) | 1 IN()", "BLOCK(ff05::8; s1,s3)"},
	{"3.2.b", "1 IN(s1,s3) | 1 IN(s2,s3)", "ALLOW(ff05::8; s2) BLOCK(ff05::8; s1)"},
	{"3.2.c", "1 IN(s1,s3) | 1 EX()", "TO_EX(ff05::8)"},
	{"3.2.d", "1 IN(s1,s3) | 1 EX(s2,s3)", "TO_EX(ff05::8; s2,s3)"},
	{"3.2.e", "1 EX() | 1 IN()", "TO_IN(ff05::8)"},
	{"3.2.f", "1 EX() | 1 IN(s1,s3)", "TO_IN(ff05::8; s1,s3)"},
	{"3.2.g", "1 EX() | 1 EX()", ""},
	{"3.2.h", "1 EX() | 1 EX(s1,s3)", "BLOCK(ff05::8; s1,s3)"},
	{"3.2.i", "1 EX(s1,s3) | 1 IN()", "TO_IN(ff05::8)"},
	{"3.2.j", "1 EX(s1,s3) | 1 IN(s2,s3)", "TO_IN(ff05::8; s2,s3)"},
	{"3.2.k", "1 EX(s1,s3) | 1 EX()", "ALLOW(ff05::8; s1,s3)"},
	{"3.2.l", "1 EX(s1,s3) | 1 EX(s2,s3)", "ALLOW(ff05::8; s1) BLOCK(ff05::8; s2)"},

	{"3.3.a", "1 IN(s1,s3) | 2 IN()", ""},
	{"3.3.b", "1 IN(s1,s3) | 2 IN(s2,s3)", "ALLOW(ff05::8; s2)"},
	{"3.3.c", "1 IN(s1,s3) | 2 EX()", "TO_EX(ff05::8)"},
	{"3.3.d", "1 IN(s1,s3) | 2 EX(s2,s3)", "TO_EX(ff05::8; s2)"},
	{"3.3.e", "1 EX() | 2 IN()", ""},
	{"3.3.f", "1 EX() | 2 IN(s1,s3)", ""},
	{"3.3.g", "1 EX() | 2 EX()", ""},
	{"3.3.h", "1 EX() | 2 EX(s1,s3)", ""},
	{"3.3.i", "1 EX(s1,s3) | 2 IN()", ""},
	{"3.3.j", "1 EX(s1,s3) | 2 IN(s2,s3)", "ALLOW(ff05::8; s3)"},
	{"3.3.k", "1 EX(s1,s3) | 2 EX()", "ALLOW(ff05::8; s1,s3)"},
	{"3.3.l", "1 EX(s1,s3) | 2 EX(s2,s3)", "ALLOW(ff05::8; s1)"},

	{"3.4.a", "1 IN(s1,s3) | 2 IN(s2,s3) | 1 IN()", "BLOCK(ff05::8; s1)"},
	{"3.4.b", "1 IN(s1,s3) | 2 IN(s2,s3) | 1 IN(s3,s4)", "ALLOW(ff05::8; s4) BLOCK(ff05::8; s1)"},
	{"3.4.c", "1 IN(s1,s3) | 2 IN(s2,s3) | 1 EX()", "TO_EX(ff05::8)"},
	{"3.4.d", "1 IN(s1,s3) | 2 IN(s2,s3) | 1 EX(s3,s4)", "TO_EX(ff05::8; s4)"},
	{"3.4.e", "1 IN(s1,s3) | 2 EX(s2,s3) | 1 IN()", "BLOCK(ff05::8; s3)"},
	{"3.4.f", "1 IN(s1,s3) | 2 EX(s2,s3) | 1 IN(s2,s4)", "ALLOW(ff05::8; s2) BLOCK(ff05::8; s3)"},
	{"3.4.g", "1 IN(s1,s3) | 2 EX(s2,s3) | 1 EX()", "ALLOW(ff05::8; s2)"},
	{"3.4.h", "1 IN(s1,s3) | 2 EX(s2,s3) | 1 EX(s3,s4)", "ALLOW(ff05::8; s2) BLOCK(ff05::8; s3)"},
	{"3.4.i", "1 EX(s1,s3) | 2 IN(s2,s3) | 1 IN()", "TO_IN(ff05::8; s2,s3)"},
	{"3.4.j", "1 EX(s1,s3) | 2 IN(s2,s3) | 1 IN(s3,s4)", "TO_IN(ff05::8; s2,s3,s4)"},
	{"3.4.k", "1 EX(s1,s3) | 2 IN(s2,s3) | 1 EX()", "ALLOW(ff05::8; s1)"},
	{"3.4.l", "1 EX(s1,s3) | 2 IN(s2,s3) | 1 EX(s3,s4)", "ALLOW(ff05::8; s1) BLOCK(ff05::8; s4)"},
	{"3.4.m", "1 EX(s1,s3) | 2 EX(s2,s3) | 1 IN()", "BLOCK(ff05::8; s2)"},
	{"3.4.n", "1 EX(s1,s3) | 2 EX(s2,s3) | 1 IN(s3,s4)", "ALLOW(ff05::8; s3) BLOCK(ff05::8; s2)"},
	{"3.4.o", "1 EX(s1,s3) | 2 EX(s2,s3) | 1 EX()", "ALLOW(ff05::8; s3)"},
	// Its title speaks of INCLUDE (B) at the end, but only one of the sockets changes.
	{"3.4.p", "1 EX(s1,s3) | 2 EX(s2,s3) | 1 EX(s2,s4)", "ALLOW(ff05::8; s3) BLOCK(ff05::8; s2)"},
}

// settled has the steps happen, and all of it told.
func (n *node) settled(steps []string) *node {
	n.t.Helper()
	n.do(0, "source", []string{"fe80::a"})
	for _, step := range steps {
		f := strings.Fields(step)
		n.do(n.now, "listen", []string{"ff05::8", f[1], "by", f[0]})
		n.runUntil(n.now + 2*time.Second)
	}
	n.transcript = nil
	n.runUntil(10 * time.Second)
	return n
}

func TestV2_16_V2_20_V2_21_V2_22_V2_23_V2_24_V2_25_V2_26_TAHI3(t *testing.T) {
	for _, tt := range tahiChanges {
		t.Run("TAHI "+tt.part, func(t *testing.T) {
			steps := strings.Split(tt.steps, " | ")
			last := strings.Fields(steps[len(steps)-1])
			n := newNode(t, listener.Config{}, &share{1, 1}).settled(steps[:len(steps)-1])
			text := fmt.Sprintf("10s listen ff05::8 %s by %s\n", last[1], last[0])
			if tt.want != "" {
				text += "10s > " + tt.want + "\n11s > " + tt.want + "\n"
			}
			n.play(text + "1h wait\n")
		})
	}
}

// tahiMerges are groups 3.5 to 3.7: of the steps, the first n have been told, and the other two follow within half a
// second of each other, before the first one's repeat. Reports come at once, at once, and a second later. Where the
// suite allows two variants (3.5.h and its like) ours is the one in which every Report counts (V2-28).
var tahiMerges = []struct {
	part  string
	told  int
	steps string
	want  [3]string
}{
	{"3.5.a", 1, "1 IN(s1,s3) | 1 IN(s2,s3) | 1 IN()", [3]string{"ALLOW(s2) BLOCK(s1)", "BLOCK(s1,s2,s3)", "BLOCK(s2,s3)"}},
	{"3.5.b", 1, "1 IN(s1,s3) | 1 IN(s2,s3) | 1 IN(s3,s4)", [3]string{"ALLOW(s2) BLOCK(s1)", "ALLOW(s4) BLOCK(s1,s2)", "ALLOW(s4) BLOCK(s2)"}},
	{"3.5.c", 1, "1 IN(s1,s3) | 1 IN(s2,s3) | 1 EX()", [3]string{"ALLOW(s2) BLOCK(s1)", "TO_EX()", "TO_EX()"}},
	{"3.5.d", 1, "1 IN(s1,s3) | 1 IN(s2,s3) | 1 EX(s3,s4)", [3]string{"ALLOW(s2) BLOCK(s1)", "TO_EX(s3,s4)", "TO_EX(s3,s4)"}},
	{"3.5.e", 1, "1 IN() | 1 EX(s1,s3) | 1 IN()", [3]string{"TO_EX(s1,s3)", "TO_IN()", "TO_IN()"}},
	{"3.5.f", 1, "1 IN() | 1 EX(s1,s3) | 1 IN(s2,s3)", [3]string{"TO_EX(s1,s3)", "TO_IN(s2,s3)", "TO_IN(s2,s3)"}},
	{"3.5.g", 1, "1 IN() | 1 EX(s1,s3) | 1 EX()", [3]string{"TO_EX(s1,s3)", "TO_EX()", "ALLOW(s1,s3)"}},
	{"3.5.h", 1, "1 IN() | 1 EX(s1,s3) | 1 EX(s2,s3)", [3]string{"TO_EX(s1,s3)", "TO_EX(s2,s3)", "ALLOW(s1) BLOCK(s2)"}},
	{"3.5.i", 1, "1 EX() | 1 IN(s1,s3) | 1 IN()", [3]string{"TO_IN(s1,s3)", "TO_IN()", "BLOCK(s1,s3)"}},
	{"3.5.j", 1, "1 EX() | 1 IN(s1,s3) | 1 IN(s2,s3)", [3]string{"TO_IN(s1,s3)", "TO_IN(s2,s3)", "ALLOW(s2) BLOCK(s1)"}},
	{"3.5.k", 1, "1 EX() | 1 IN(s1,s3) | 1 EX()", [3]string{"TO_IN(s1,s3)", "TO_EX()", "TO_EX()"}},
	{"3.5.l", 1, "1 EX() | 1 IN(s1,s3) | 1 EX(s2,s3)", [3]string{"TO_IN(s1,s3)", "TO_EX(s2,s3)", "TO_EX(s2,s3)"}},
	{"3.5.m", 1, "1 EX(s1,s3) | 1 EX(s2,s3) | 1 IN()", [3]string{"ALLOW(s1) BLOCK(s2)", "TO_IN()", "TO_IN()"}},
	{"3.5.n", 1, "1 EX(s1,s3) | 1 EX(s2,s3) | 1 IN(s3,s4)", [3]string{"ALLOW(s1) BLOCK(s2)", "TO_IN(s3,s4)", "TO_IN(s3,s4)"}},
	{"3.5.o", 1, "1 EX(s1,s3) | 1 EX(s2,s3) | 1 EX()", [3]string{"ALLOW(s1) BLOCK(s2)", "ALLOW(s1,s2,s3)", "ALLOW(s2,s3)"}},
	{"3.5.p", 1, "1 EX(s1,s3) | 1 EX(s2,s3) | 1 EX(s3,s4)", [3]string{"ALLOW(s1) BLOCK(s2)", "ALLOW(s1,s2) BLOCK(s4)", "ALLOW(s2) BLOCK(s4)"}},

	{"3.6.a", 0, "1 IN(s1,s3) | 2 IN(s2,s3)", [3]string{"ALLOW(s1,s3)", "ALLOW(s1,s2,s3)", "ALLOW(s2)"}},
	{"3.6.b", 0, "1 IN(s1,s3) | 2 EX()", [3]string{"ALLOW(s1,s3)", "TO_EX()", "TO_EX()"}},
	{"3.6.c", 0, "1 IN(s1,s3) | 2 EX(s2,s3)", [3]string{"ALLOW(s1,s3)", "TO_EX(s2)", "TO_EX(s2)"}},
	{"3.6.d", 1, "1 IN(s1,s3) | 2 IN(s2,s3) | 1 IN()", [3]string{"ALLOW(s2)", "ALLOW(s2) BLOCK(s1)", "BLOCK(s1)"}},
	{"3.6.e", 1, "1 IN(s1,s3) | 2 IN(s2,s3) | 1 IN(s3,s4)", [3]string{"ALLOW(s2)", "ALLOW(s2,s4) BLOCK(s1)", "ALLOW(s4) BLOCK(s1)"}},
	{"3.6.f", 1, "1 IN(s1,s3) | 2 IN(s2,s3) | 1 EX()", [3]string{"ALLOW(s2)", "TO_EX()", "TO_EX()"}},
	{"3.6.g", 1, "1 IN(s1,s3) | 2 IN(s2,s3) | 1 EX(s3,s4)", [3]string{"ALLOW(s2)", "TO_EX(s4)", "TO_EX(s4)"}},
	{"3.6.h", 1, "1 IN(s1,s3) | 2 EX(s2,s3) | 1 IN()", [3]string{"TO_EX(s2)", "TO_EX(s2,s3)", "BLOCK(s3)"}},
	{"3.6.i", 1, "1 IN(s1,s3) | 2 EX(s2,s3) | 1 IN(s2,s4)", [3]string{"TO_EX(s2)", "TO_EX(s3)", "ALLOW(s2) BLOCK(s3)"}},
	{"3.6.j", 1, "1 IN(s1,s3) | 2 EX(s2,s3) | 1 EX()", [3]string{"TO_EX(s2)", "TO_EX()", "ALLOW(s2)"}},
	{"3.6.k", 1, "1 IN(s1,s3) | 2 EX(s2,s3) | 1 EX(s3,s4)", [3]string{"TO_EX(s2)", "TO_EX(s3)", "ALLOW(s2) BLOCK(s3)"}},

	{"3.7.a", 0, "1 EX(s1,s3) | 2 IN(s2,s3)", [3]string{"TO_EX(s1,s3)", "TO_EX(s1)", "ALLOW(s3)"}},
	{"3.7.b", 0, "1 EX(s1,s3) | 2 EX()", [3]string{"TO_EX(s1,s3)", "TO_EX()", "ALLOW(s1,s3)"}},
	{"3.7.c", 0, "1 EX(s1,s3) | 2 EX(s2,s3)", [3]string{"TO_EX(s1,s3)", "TO_EX(s3)", "ALLOW(s1)"}},
	{"3.7.d", 1, "1 EX(s1,s3) | 2 IN(s2,s3) | 1 IN()", [3]string{"ALLOW(s3)", "TO_IN(s2,s3)", "TO_IN(s2,s3)"}},
	{"3.7.e", 1, "1 EX(s1,s3) | 2 IN(s2,s3) | 1 IN(s3,s4)", [3]string{"ALLOW(s3)", "TO_IN(s2,s3,s4)", "TO_IN(s2,s3,s4)"}},
	{"3.7.f", 1, "1 EX(s1,s3) | 2 IN(s2,s3) | 1 EX()", [3]string{"ALLOW(s3)", "ALLOW(s1,s3)", "ALLOW(s1)"}},
	{"3.7.g", 1, "1 EX(s1,s3) | 2 IN(s2,s3) | 1 EX(s3,s4)", [3]string{"ALLOW(s3)", "ALLOW(s1,s3) BLOCK(s4)", "ALLOW(s1) BLOCK(s4)"}},
	{"3.7.h", 1, "1 EX(s1,s3) | 2 EX(s2,s3) | 1 IN()", [3]string{"ALLOW(s1)", "ALLOW(s1) BLOCK(s2)", "BLOCK(s2)"}},
	{"3.7.i", 1, "1 EX(s1,s3) | 2 EX(s2,s3) | 1 IN(s3,s4)", [3]string{"ALLOW(s1)", "ALLOW(s1,s3) BLOCK(s2)", "ALLOW(s3) BLOCK(s2)"}},
	{"3.7.j", 1, "1 EX(s1,s3) | 2 EX(s2,s3) | 1 EX()", [3]string{"ALLOW(s1)", "ALLOW(s1,s3)", "ALLOW(s3)"}},
	{"3.7.k", 1, "1 EX(s1,s3) | 2 EX(s2,s3) | 1 EX(s2,s4)", [3]string{"ALLOW(s1)", "ALLOW(s1,s3) BLOCK(s2)", "ALLOW(s3) BLOCK(s2)"}},
}

func TestV2_27_V2_28_V2_29_V2_30_V2_31_V2_65_TAHI3(t *testing.T) {
	about := strings.NewReplacer("()", "(ff05::8)", "(", "(ff05::8; ")
	for _, tt := range tahiMerges {
		t.Run("TAHI "+tt.part, func(t *testing.T) {
			steps := strings.Split(tt.steps, " | ")
			n := newNode(t, listener.Config{}, &share{1, 1}).settled(steps[:tt.told])
			text := ""
			for i, at := range []string{"10s", "10.5s", "11.5s"} {
				if i < 2 {
					f := strings.Fields(steps[tt.told+i])
					text += fmt.Sprintf("%s listen ff05::8 %s by %s\n", at, f[1], f[0])
				}
				text += at + " > " + about.Replace(tt.want[i]) + "\n"
			}
			n.play(text + "1h wait\n")
		})
	}
}

// tahiScenarios are the other groups, but for group 2: first what is listened to, all of it told, and then a
// transcript.
var tahiScenarios = []struct {
	rule       string
	cfg        listener.Config
	setup      string // "; " between
	transcript string
}{
	{rule: "TAHI 1.1 V2-60", transcript: `
		10s   source ::
		10s   listen ff02::1:ff00:a EX()
		10s   > TO_EX(ff02::1:ff00:a) from ::
		11s   > TO_EX(ff02::1:ff00:a) from ::
		12s   source fe80::a
		12s   > TO_EX(ff02::1:ff00:a)
		13s   > TO_EX(ff02::1:ff00:a)
		14s   listen ff05::8 IN(s1)
		14s   > ALLOW(ff05::8; s1)
		15s   > ALLOW(ff05::8; s1)
		1h    wait
	`},
	{rule: "TAHI 1.2.a V2-26", cfg: listener.Config{Robustness: 3}, setup: "source fe80::a", transcript: `
		10s   listen ff05::8 IN(s1)
		10s   > ALLOW(ff05::8; s1)
		11s   > ALLOW(ff05::8; s1)
		12s   > ALLOW(ff05::8; s1)
		1h    wait
	`},
	{rule: "TAHI 1.2.b V2-26", cfg: listener.Config{Robustness: 7}, setup: "source fe80::a", transcript: `
		10s   listen ff05::8 IN(s1)
		10s   > ALLOW(ff05::8; s1)
		11s   > ALLOW(ff05::8; s1)
		12s   > ALLOW(ff05::8; s1)
		13s   > ALLOW(ff05::8; s1)
		14s   > ALLOW(ff05::8; s1)
		15s   > ALLOW(ff05::8; s1)
		16s   > ALLOW(ff05::8; s1)
		1h    wait
	`},
	{rule: "TAHI 1.3.a V2-26", cfg: listener.Config{UnsolicitedReportInterval: 2 * time.Second}, setup: "source fe80::a", transcript: `
		10s   listen ff05::8 IN(s1)
		10s   > ALLOW(ff05::8; s1)
		12s   > ALLOW(ff05::8; s1)
		1h    wait
	`},
	{rule: "TAHI 1.3.b V2-26", cfg: listener.Config{UnsolicitedReportInterval: 3 * time.Second}, setup: "source fe80::a", transcript: `
		10s   listen ff05::8 IN(s1)
		10s   > ALLOW(ff05::8; s1)
		13s   > ALLOW(ff05::8; s1)
		1h    wait
	`},
	{rule: "TAHI 1.4 V2-18", setup: "source fe80::a", transcript: `
		10s   listen ff02::1 EX()
		1h    wait
	`},

	{rule: "TAHI 4.1.a V2-40", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 :: 10s
		19.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.1.b V2-40", setup: "source fe80::a; listen ff05::8 EX()", transcript: `
		10s     query2 :: 10s
		19.995s > IS_EX(ff05::8)
	`},
	{rule: "TAHI 4.1.c V2-40", setup: "source fe80::a; listen ff05::8 EX(s1)", transcript: `
		10s     query2 :: 10s
		19.995s > IS_EX(ff05::8; s1)
	`},
	{rule: "TAHI 4.1.d V2-34", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::8 IN()", transcript: `
		10s     query2 :: 10s
		1h      wait
	`},
	{rule: "TAHI 4.1.e V2-36", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 :: 10s from fe80::1
		10s     query2 :: 10s from fe80::2
		10s     query2 :: 10s from fe80::3
		19.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.1.f V2-55", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 :: 10s
		11s     reportv2
		19.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.2.a V2-40", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::9 IN(s2)", transcript: `
		10s     query2 :: 10s
		19.995s > IS_IN(ff05::8; s1) IS_IN(ff05::9; s2)
	`},
	{rule: "TAHI 4.2.b V2-40", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::9 EX(s2)", transcript: `
		10s     query2 :: 10s
		19.995s > IS_IN(ff05::8; s1) IS_EX(ff05::9; s2)
	`},
	{rule: "TAHI 4.2.c V2-40", setup: "source fe80::a; listen ff05::8 EX(s1); listen ff05::9 EX()", transcript: `
		10s     query2 :: 10s
		19.995s > IS_EX(ff05::8; s1) IS_EX(ff05::9)
	`},

	{rule: "TAHI 4.3.a V2-41", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 1s
		10.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.3.b V2-41", setup: "source fe80::a; listen ff05::8 EX()", transcript: `
		10s     query2 ff05::8 1s
		10.995s > IS_EX(ff05::8)
	`},
	{rule: "TAHI 4.3.c V2-41", setup: "source fe80::a; listen ff05::8 EX(s1)", transcript: `
		10s     query2 ff05::8 1s
		10.995s > IS_EX(ff05::8; s1)
	`},
	{rule: "TAHI 4.3.d V2-34", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::8 IN()", transcript: `
		10s     query2 ff05::8 1s
		1h      wait
	`},
	{rule: "TAHI 4.3.e V2-38", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 1s from fe80::1
		10s     query2 ff05::8 1s from fe80::2
		10s     query2 ff05::8 1s from fe80::3
		10.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.3.f V2-55", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 1s
		10.5s   reportv2
		10.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.4.a V2-41", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::9 IN(s2)", transcript: `
		10s     query2 ff05::8 1s
		10.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.4.b V2-41", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::9 EX(s2)", transcript: `
		10s     query2 ff05::9 1s
		10.995s > IS_EX(ff05::9; s2)
	`},
	{rule: "TAHI 4.4.c V2-41", setup: "source fe80::a; listen ff05::8 EX(s1); listen ff05::9 EX()", transcript: `
		10s     query2 ff05::8 1s
		10s     query2 ff05::9 1s
		10.995s > IS_EX(ff05::8; s1) IS_EX(ff05::9)
	`},

	{rule: "TAHI 4.5.a V2-42", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 1s sources s1,s2
		10.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.5.b V2-42", setup: "source fe80::a; listen ff05::8 EX()", transcript: `
		10s     query2 ff05::8 1s sources s1,s2
		10.995s > IS_IN(ff05::8; s1,s2)
	`},
	{rule: "TAHI 4.5.c V2-42", setup: "source fe80::a; listen ff05::8 EX(s1)", transcript: `
		10s     query2 ff05::8 1s sources s1,s2
		10.995s > IS_IN(ff05::8; s2)
	`},
	{rule: "TAHI 4.5.d V2-34", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::8 IN()", transcript: `
		10s     query2 ff05::8 1s sources s1
		1h      wait
	`},
	{rule: "TAHI 4.5.e V2-39", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 1s sources s1 from fe80::1
		10s     query2 ff05::8 1s sources s1 from fe80::2
		10s     query2 ff05::8 1s sources s1 from fe80::3
		10.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.5.f V2-55", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 1s sources s1
		10.5s   reportv2
		10.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.6.a V2-42", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::9 IN(s2)", transcript: `
		10s     query2 ff05::8 1s sources s1,s2
		10.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.6.b V2-42", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::9 EX(s2)", transcript: `
		10s     query2 ff05::9 1s sources s1,s2
		10.995s > IS_IN(ff05::9; s1)
	`},
	{rule: "TAHI 4.6.c V2-42", setup: "source fe80::a; listen ff05::8 EX(s1); listen ff05::9 EX()", transcript: `
		10s     query2 ff05::8 1s sources s1,s2
		10s     query2 ff05::9 1s sources s1,s2
		10.995s > IS_IN(ff05::8; s2) IS_IN(ff05::9; s1,s2)
	`},

	{rule: "TAHI 4.7.a V2-35", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 :: 10s
		11s     query2 :: 20s
		19.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.7.b V2-36", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 :: 20s
		11s     query2 :: 10s
		20.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.7.c V2-35", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 :: 10s
		11s     query2 ff05::8 20s
		19.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.7.d V2-37", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 :: 20s
		11s     query2 ff05::8 1s
		11.995s > IS_IN(ff05::8; s1)
		29.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.7.e V2-35", setup: "source fe80::a; listen ff05::8 IN(s1,s2)", transcript: `
		10s     query2 :: 10s
		11s     query2 ff05::8 20s sources s1
		19.995s > IS_IN(ff05::8; s1,s2)
		1h      wait
	`},
	{rule: "TAHI 4.7.f V2-37", setup: "source fe80::a; listen ff05::8 IN(s1,s2)", transcript: `
		10s     query2 :: 20s
		11s     query2 ff05::8 1s sources s1
		11.995s > IS_IN(ff05::8; s1)
		29.995s > IS_IN(ff05::8; s1,s2)
		1h      wait
	`},
	{rule: "TAHI 4.7.g V2-36", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 1s
		10.5s   query2 :: 10s
		10.995s > IS_IN(ff05::8; s1)
		20.495s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.7.h V2-36", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 20s
		11s     query2 :: 10s
		20.995s > IS_IN(ff05::8; s1)
		29.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.7.i V2-36", setup: "source fe80::a; listen ff05::8 IN(s1,s2)", transcript: `
		10s     query2 ff05::8 1s sources s1
		10.5s   query2 :: 10s
		10.995s > IS_IN(ff05::8; s1)
		20.495s > IS_IN(ff05::8; s1,s2)
		1h      wait
	`},
	{rule: "TAHI 4.7.j V2-36", setup: "source fe80::a; listen ff05::8 IN(s1,s2)", transcript: `
		10s     query2 ff05::8 20s sources s1
		11s     query2 :: 10s
		20.995s > IS_IN(ff05::8; s1,s2)
		29.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},

	{rule: "TAHI 4.8.a V2-38", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 10s
		11s     query2 ff05::8 20s
		19.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.8.b V2-38", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 20s
		11s     query2 ff05::8 10s
		20.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.8.c V2-38", setup: "source fe80::a; listen ff05::8 IN(s1,s2)", transcript: `
		10s     query2 ff05::8 10s
		11s     query2 ff05::8 20s sources s1
		19.995s > IS_IN(ff05::8; s1,s2)
		1h      wait
	`},
	{rule: "TAHI 4.8.d V2-38", setup: "source fe80::a; listen ff05::8 IN(s1,s2)", transcript: `
		10s     query2 ff05::8 20s
		11s     query2 ff05::8 10s sources s1
		20.995s > IS_IN(ff05::8; s1,s2)
		1h      wait
	`},
	{rule: "TAHI 4.8.e V2-38", setup: "source fe80::a; listen ff05::8 IN(s1,s2)", transcript: `
		10s     query2 ff05::8 10s sources s1
		11s     query2 ff05::8 20s
		19.995s > IS_IN(ff05::8; s1,s2)
		1h      wait
	`},
	{rule: "TAHI 4.8.f V2-38", setup: "source fe80::a; listen ff05::8 IN(s1,s2)", transcript: `
		10s     query2 ff05::8 20s sources s1
		11s     query2 ff05::8 10s
		20.995s > IS_IN(ff05::8; s1,s2)
		1h      wait
	`},
	{rule: "TAHI 4.9.a V2-39", setup: "source fe80::a; listen ff05::8 IN(s1,s2)", transcript: `
		10s     query2 ff05::8 10s sources s1
		11s     query2 ff05::8 20s sources s2,s3
		19.995s > IS_IN(ff05::8; s1,s2)
		1h      wait
	`},
	{rule: "TAHI 4.9.b V2-39", setup: "source fe80::a; listen ff05::8 EX()", transcript: `
		10s     query2 ff05::8 10s sources s1
		11s     query2 ff05::8 20s sources s2,s3
		19.995s > IS_IN(ff05::8; s1,s2,s3)
		1h      wait
	`},
	{rule: "TAHI 4.9.c V2-39", setup: "source fe80::a; listen ff05::8 EX(s1)", transcript: `
		10s     query2 ff05::8 10s sources s1,s2
		11s     query2 ff05::8 5s sources s3
		15.995s > IS_IN(ff05::8; s2,s3)
		1h      wait
	`},

	{rule: "TAHI 4.10.a V2-45", setup: "source fe80::a; listen ff02::1:ff00:a EX()", transcript: `
		10s     query2 :: 10s
		11s     listen ff05::8 IN(s1)
		11s     > ALLOW(ff05::8; s1)
		12s     > ALLOW(ff05::8; s1)
		19.995s > IS_EX(ff02::1:ff00:a) IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.10.b V2-34 V2-45", setup: "source fe80::a; listen ff02::1:ff00:a EX()", transcript: `
		10s     query2 ff05::8 10s
		11s     listen ff05::8 IN(s1)
		11s     > ALLOW(ff05::8; s1)
		12s     > ALLOW(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.10.c V2-34 V2-45", setup: "source fe80::a; listen ff02::1:ff00:a EX()", transcript: `
		10s     query2 ff05::8 10s sources s1
		11s     listen ff05::8 IN(s1)
		11s     > ALLOW(ff05::8; s1)
		12s     > ALLOW(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.10.d V2-45", setup: "source fe80::a; listen ff02::1:ff00:a EX(); listen ff05::8 IN(s1)", transcript: `
		10s     query2 :: 10s
		11s     listen ff05::8 IN()
		11s     > BLOCK(ff05::8; s1)
		12s     > BLOCK(ff05::8; s1)
		19.995s > IS_EX(ff02::1:ff00:a)
	`},
	{rule: "TAHI 4.10.e V2-41 V2-45", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 10s
		11s     listen ff05::8 IN()
		11s     > BLOCK(ff05::8; s1)
		12s     > BLOCK(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.10.f V2-42 V2-45", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query2 ff05::8 10s sources s1
		11s     listen ff05::8 IN()
		11s     > BLOCK(ff05::8; s1)
		12s     > BLOCK(ff05::8; s1)
		1h      wait
	`},
	{rule: "TAHI 4.10.g V2-45", setup: "source fe80::a; listen ff05::8 IN(s1,s3)", transcript: `
		10s     query2 :: 10s
		11s     listen ff05::8 IN(s2,s3)
		11s     > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1)
		12s     > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1)
		19.995s > IS_IN(ff05::8; s2,s3)
	`},
	{rule: "TAHI 4.10.h V2-41 V2-45", setup: "source fe80::a; listen ff05::8 IN(s1,s3)", transcript: `
		10s     query2 ff05::8 10s
		11s     listen ff05::8 IN(s2,s3)
		11s     > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1)
		12s     > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1)
		19.995s > IS_IN(ff05::8; s2,s3)
	`},
	{rule: "TAHI 4.10.i V2-42 V2-45", setup: "source fe80::a; listen ff05::8 IN(s1,s3)", transcript: `
		10s     query2 ff05::8 10s sources s1,s2,s3
		11s     listen ff05::8 IN(s2)
		11s     > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1,s3)
		12s     > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1,s3)
		19.995s > IS_IN(ff05::8; s2)
	`},
	{rule: "TAHI 4.10.j V2-45", setup: "source fe80::a; listen ff05::8 IN(s1,s3)", transcript: `
		10s     query2 :: 10s
		11s     listen ff05::8 EX(s2,s3)
		11s     > TO_EX(ff05::8; s2,s3)
		12s     > TO_EX(ff05::8; s2,s3)
		19.995s > IS_EX(ff05::8; s2,s3)
	`},
	{rule: "TAHI 4.10.k V2-41 V2-45", setup: "source fe80::a; listen ff05::8 IN(s1,s3)", transcript: `
		10s     query2 ff05::8 10s
		11s     listen ff05::8 EX(s2,s3)
		11s     > TO_EX(ff05::8; s2,s3)
		12s     > TO_EX(ff05::8; s2,s3)
		19.995s > IS_EX(ff05::8; s2,s3)
	`},
	{rule: "TAHI 4.10.l V2-42 V2-45", setup: "source fe80::a; listen ff05::8 IN(s1,s3)", transcript: `
		10s     query2 ff05::8 10s sources s1,s2,s3
		11s     listen ff05::8 EX(s2,s3)
		11s     > TO_EX(ff05::8; s2,s3)
		12s     > TO_EX(ff05::8; s2,s3)
		19.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 4.10.m V2-45", setup: "source fe80::a; listen ff05::8 IN(s1,s3)", transcript: `
		10s     query2 :: 10s
		11s     listen ff05::8 IN(s2,s3) by 2
		11s     > ALLOW(ff05::8; s2)
		12s     > ALLOW(ff05::8; s2)
		19.995s > IS_IN(ff05::8; s1,s2,s3)
	`},
	{rule: "TAHI 4.10.n V2-41 V2-45", setup: "source fe80::a; listen ff05::8 IN(s1,s3)", transcript: `
		10s     query2 ff05::8 10s
		11s     listen ff05::8 IN(s2,s3) by 2
		11s     > ALLOW(ff05::8; s2)
		12s     > ALLOW(ff05::8; s2)
		19.995s > IS_IN(ff05::8; s1,s2,s3)
	`},
	{rule: "TAHI 4.10.o V2-42 V2-45", setup: "source fe80::a; listen ff05::8 IN(s1,s3)", transcript: `
		10s     query2 ff05::8 10s sources s1,s2
		11s     listen ff05::8 IN(s2,s3) by 2
		11s     > ALLOW(ff05::8; s2)
		12s     > ALLOW(ff05::8; s2)
		19.995s > IS_IN(ff05::8; s1,s2)
	`},

	// There is no limit on source lists: 5.1.a and b at the service interface, c on the interface's own list.
	{rule: "TAHI 5.1.a V2-72", setup: "source fe80::a", transcript: `
		10s   mtu 65535
		10s   listen ff05::8 IN(s1-s4000)
		10s   > ALLOW(ff05::8; s1-s4000)
		11s   > ALLOW(ff05::8; s1-s4000)
	`},
	{rule: "TAHI 5.1.b V2-72", setup: "source fe80::a", transcript: `
		10s   mtu 65535
		10s   listen ff05::8 EX(s1-s4000)
		10s   > TO_EX(ff05::8; s1-s4000)
		11s   > TO_EX(ff05::8; s1-s4000)
	`},
	{rule: "TAHI 5.1.c V2-72", setup: "source fe80::a; mtu 65535; listen ff05::8 IN(s1-s2000)", transcript: `
		10s   listen ff05::8 IN(s2001-s4000) by 2
		10s   > ALLOW(ff05::8; s2001-s4000)
		10s   ? ff05::8
		10s   = ff05::8 IN(s1-s4000) Delaying due 11s
		11s   > ALLOW(ff05::8; s2001-s4000)
	`},
	{rule: "TAHI 5.2.a V2-47", setup: "source fe80::a", transcript: `
		10s   listen ff05::8 IN(s1-s90)
		10s   > ALLOW(ff05::8; s1-s89)
		10s   > ALLOW(ff05::8; s90)
		11s   > ALLOW(ff05::8; s1-s89)
		11s   > ALLOW(ff05::8; s90)
	`},
	{rule: "TAHI 5.2.b V2-47", setup: "source fe80::a; listen ff05::8 IN(s1-s90)", transcript: `
		10s   listen ff05::8 IN()
		10s   > BLOCK(ff05::8; s1-s89)
		10s   > BLOCK(ff05::8; s90)
		11s   > BLOCK(ff05::8; s1-s89)
		11s   > BLOCK(ff05::8; s90)
	`},
	{rule: "TAHI 5.2.c V2-46", setup: "source fe80::a; listen ff05::8 IN(s1-s45)", transcript: `
		10s   listen ff05::8 IN(s46-s90)
		10s   > ALLOW(ff05::8; s46-s90)
		10s   > BLOCK(ff05::8; s1-s45)
		11s   > ALLOW(ff05::8; s46-s90)
		11s   > BLOCK(ff05::8; s1-s45)
	`},
	{rule: "TAHI 5.2.d V2-48", setup: "source fe80::a", transcript: `
		10s     listen ff05::8 EX(s1-s90)
		10s     > TO_EX(ff05::8; s1-s89)
		11s     > TO_EX(ff05::8; s1-s89)
		20s     query2 ff05::8 1s
		20.995s > IS_EX(ff05::8; s1-s89)
	`},
	{rule: "TAHI 5.2.e V2-47", setup: "source fe80::a; listen ff05::8 EX(s1-s90)", transcript: `
		10s   listen ff05::8 EX()
		10s   > ALLOW(ff05::8; s1-s89)
		10s   > ALLOW(ff05::8; s90)
		11s   > ALLOW(ff05::8; s1-s89)
		11s   > ALLOW(ff05::8; s90)
	`},
	{rule: "TAHI 5.2.f V2-47", setup: "source fe80::a; listen ff05::8 EX()", transcript: `
		10s   listen ff05::8 EX(s1-s90)
		10s   > BLOCK(ff05::8; s1-s89)
		10s   > BLOCK(ff05::8; s90)
		11s   > BLOCK(ff05::8; s1-s89)
		11s   > BLOCK(ff05::8; s90)
	`},
	{rule: "TAHI 5.2.g V2-46", setup: "source fe80::a; listen ff05::8 EX(s1-s45)", transcript: `
		10s   listen ff05::8 EX(s46-s90)
		10s   > ALLOW(ff05::8; s1-s45)
		10s   > BLOCK(ff05::8; s46-s90)
		11s   > ALLOW(ff05::8; s1-s45)
		11s   > BLOCK(ff05::8; s46-s90)
	`},
	{rule: "TAHI 5.2.h V2-47", setup: "source fe80::a; listen ff05::8 EX()", transcript: `
		10s   listen ff05::8 IN(s1-s90)
		10s   > TO_IN(ff05::8; s1-s89)
		10s   > TO_IN(ff05::8; s90)
		11s   > TO_IN(ff05::8; s1-s89)
		11s   > TO_IN(ff05::8; s90)
	`},
	{rule: "TAHI 5.3 V2-47", setup: "source fe80::a; listen ff05::8 IN(s1-s90)", transcript: `
		10s     query2 ff05::8 1s
		10.995s > IS_IN(ff05::8; s1-s89)
		10.995s > IS_IN(ff05::8; s90)
	`},
	{rule: "TAHI 5.4.a V2-45 V2-47", setup: "source fe80::a; listen ff05::8 IN(s1-s89)", transcript: `
		10s     query2 ff05::8 10s
		11s     listen ff05::8 IN(s1-s90)
		11s     > ALLOW(ff05::8; s90)
		12s     > ALLOW(ff05::8; s90)
		19.995s > IS_IN(ff05::8; s1-s89)
		19.995s > IS_IN(ff05::8; s90)
	`},
	{rule: "TAHI 5.4.b V2-45 V2-48", setup: "source fe80::a; listen ff05::8 EX(s1-s89)", transcript: `
		10s     query2 ff05::8 10s
		11s     listen ff05::8 EX(s1-s90)
		11s     > BLOCK(ff05::8; s90)
		12s     > BLOCK(ff05::8; s90)
		19.995s > IS_EX(ff05::8; s1-s89)
	`},

	{rule: "TAHI 6.1.a V2-50", setup: "source fe80::a; listen ff02::1:ff00:a EX()", transcript: `
		10s     query :: 10s
		19.995s > Report ff02::1:ff00:a answer
		20s     listen ff05::8 IN(s1)
		20s     > Report ff05::8 joined
		30s     > Report ff05::8 repeat
		40s     listen ff05::8 IN()
		40s     > Done ff05::8
		270s    listen ff05::8 IN(s1)
		270s    > ALLOW(ff05::8; s1)
		271s    > ALLOW(ff05::8; s1)
	`},
	{rule: "TAHI 6.1.b V2-49 V2-52", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s      query ff05::8 1s
		10.995s  > Report ff05::8 answer
		20s      query2 :: 10s
		29.995s  > Report ff05::8 answer
		40s      query2 ff05::8 1s
		40.995s  > Report ff05::8 answer
		50s      query2 ff05::8 1s sources s1
		50.995s  > Report ff05::8 answer
		270s     query2 ff05::8 1s sources s1
		270.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "TAHI 6.1.c V2-51", setup: "source fe80::a; listen ff05::8 IN(s1)", transcript: `
		10s     query :: 40s
		49.995s > Report ff05::8 answer
	`},
	{rule: "TAHI 6.1.d V2-53", setup: "source fe80::a; listen ff05::8 IN(s1); listen ff05::9 IN(s1)", transcript: `
		10s     query2 :: 20s
		10s     query2 ff05::9 10s
		11s     query ff05::8 1s
		11.995s > Report ff05::8 answer
		1h      wait
	`},
	// The suite lets a listener be suppressed or not. Ours is not.
	{rule: "TAHI 6.2 V2-55", setup: "source fe80::a; listen ff05::8 EX()", transcript: `
		10s     query2 ff05::8 10s
		11s     report ff05::8
		19.995s > IS_EX(ff05::8)
	`},

	{rule: "TAHI 7.1.a V2-58", setup: "source fe80::a", transcript: `
		10s   listen ff3e::7fff:ffff EX()
		10s   = listener: ff3e::7fff:ffff: the address is for source-specific multicast: name the sources to include
		10s   listen ff3e::4000:1 EX(s1)
		10s   = listener: ff3e::4000:1: the address is for source-specific multicast: name the sources to include
		1h    wait
	`},
	{rule: "TAHI 7.1.b V2-58 V2-74", setup: "source fe80::a",
		cfg: listener.Config{SourceSpecific: func(a netip.Addr) bool { return a == netip.MustParseAddr("ff05::8") }}, transcript: `
		10s   listen ff05::8 EX()
		10s   = listener: ff05::8: the address is for source-specific multicast: name the sources to include
		11s   listen ff05::8 IN(s1)
		11s   > ALLOW(ff05::8; s1)
		12s   > ALLOW(ff05::8; s1)
	`},
	{rule: "TAHI 7.2.a V2-77", setup: "source fe80::a; listen ff3e::4000:1 IN(s1)", transcript: `
		10s     query :: 10s
		19.995s > Report ff3e::4000:1 answer
		20s     listen ff3e::4000:1 IN()
		20s     > Done ff3e::4000:1
	`},
	{rule: "TAHI 7.2.b V2-55", setup: "source fe80::a; listen ff3e::4000:1 IN(s1)", transcript: `
		10s     query2 ff3e::4000:1 10s
		11s     report ff3e::4000:1
		19.995s > IS_IN(ff3e::4000:1; s1)
	`},

	// What gVisor's tests have beyond that.
	{rule: "gVisor TestSendQueuedMLDReports V2-61", transcript: `
		10s   source ::
		10s   listen ff02::1:ff00:a EX()
		10s   > TO_EX(ff02::1:ff00:a) from ::
		10s   listen ff0e::8 EX()
		10s   > TO_EX(ff0e::8) from ::
		11s   > TO_EX(ff02::1:ff00:a) TO_EX(ff0e::8) from ::
		12s   source ::
		20s   source fe80::a
		20s   > TO_EX(ff02::1:ff00:a) TO_EX(ff0e::8)
		21s   > TO_EX(ff02::1:ff00:a) TO_EX(ff0e::8)
		30s   source fe80::a
		1h    wait
	`},
	{rule: "gVisor TestIPv6JoinLeaveSolicitedNodeAddressPerformsMLD V2-1", setup: "source fe80::a; listen ff02::1:ff00:a EX()", transcript: `
		10s   source ::
		10s   listen ff02::1:ff00:a IN()
		10s   > TO_IN(ff02::1:ff00:a) from ::
		11s   > TO_IN(ff02::1:ff00:a) from ::
	`},
	{rule: "gVisor TestMGPWithNICLifecycle V2-61", setup: "source fe80::a; listen ff05::8 EX(); listen ff05::9 EX()", transcript: `
		10s   source none
		11s   listen ff05::9 IN()
		12s   listen ff05::a EX()
		13s   query2 :: 1s
		20s   source fe80::a
		20s   > TO_EX(ff05::8) TO_EX(ff05::a)
		21s   > TO_EX(ff05::8) TO_EX(ff05::a)
	`},
	{rule: "gVisor TestJoinCount V2-20", setup: "source fe80::a; listen ff05::8 EX(); listen ff05::8 EX() by 2", transcript: `
		10s   listen ff05::8 IN() by 1
		11s   listen ff05::8 IN() by 2
		11s   > TO_IN(ff05::8)
		12s   > TO_IN(ff05::8)
	`},
}

func TestTAHI(t *testing.T) {
	for _, s := range tahiScenarios {
		t.Run(s.rule, func(t *testing.T) {
			n := newNode(t, s.cfg, &share{1, 1})
			for step := range strings.SplitSeq(s.setup, ";") {
				if f := strings.Fields(step); len(f) > 0 {
					n.do(n.now, f[0], f[1:])
					n.runUntil(n.now + 2*time.Second)
				}
			}
			n.runUntil(10 * time.Second)
			n.play(s.transcript)
		})
	}
}

// TAHI 1.5, 1.6, 6.3: an interface in each link, two interfaces in one: each has state of its own.
func TestV2_19_V2_57_TAHI_1_5_1_6_6_3(t *testing.T) {
	if0, if1 := newNode(t, listener.Config{}, &share{1, 1}), newNode(t, listener.Config{}, &share{1, 1})
	if0.do(0, "source", []string{"fe80::a"})
	if1.do(0, "source", []string{"fe80::b"})
	if0.play(`
		10s   listen ff05::8 IN(s1)
		10s   > ALLOW(ff05::8; s1)
		11s   > ALLOW(ff05::8; s1)
		20s   query :: 1s
		20.995s > Report ff05::8 answer
	`)
	if1.play(`
		10s   listen ff05::8 EX(s2)
		10s   > TO_EX(ff05::8; s2) from fe80::b
		11s   > TO_EX(ff05::8; s2) from fe80::b
		20s   query2 :: 1s
		20.995s > IS_EX(ff05::8; s2) from fe80::b
	`)
}

// TAHI group 2: what becomes of a Query that is out of the ordinary on its way through mld.Parse. The listener has
// INCLUDE (s1) for ff05::8.
func TestV2_05_V2_06_V2_07_V2_08_V2_09_V2_10_V2_11_V2_12_V2_69_TAHI2(t *testing.T) {
	group, querier := netip.MustParseAddr("ff05::8"), netip.MustParseAddr("fe80::1")
	global := netip.MustParseAddr("2001:db8:1::a")
	query := mld.Query{Version: mld.Version2, MulticastAddress: group, MaxResponseCode: 1000, QRV: 2, QQIC: 125}
	asking := func(list ...netip.Addr) mld.Query { q := query; q.Sources = list; return q }
	about := func(a netip.Addr, list ...netip.Addr) mld.Query {
		q := asking(list...)
		q.MulticastAddress = a
		return q
	}
	code := func(c uint16) mld.Query { q := query; q.MaxResponseCode = c; return q }
	packet := func(q mld.Query) []byte { return mld.AppendQuery(nil, querier, q.MulticastAddress, q) }
	edited := func(p []byte, edit func(p []byte)) []byte { p = bytes.Clone(p); edit(p); return p }
	// sized gives a packet so many octets of message, cut off or of zeros, and a right checksum.
	sized := func(p []byte, n int) []byte {
		p = append(bytes.Clone(p), make([]byte, 100)...)[:48+n]
		binary.BigEndian.PutUint16(p[4:], uint16(8+n))
		return resealed(p, func([]byte) {})
	}
	count := func(p []byte, n uint16) []byte {
		return resealed(p, func(m []byte) { binary.BigEndian.PutUint16(m[26:], n) })
	}
	const all, none = "IS_IN(ff05::8; s1)", ""
	for _, tt := range []struct {
		part   string
		packet []byte
		within time.Duration
		want   string
	}{
		{"2.2.a", edited(packet(query), func(p []byte) { p[7] = 0 }), 0, none},
		{"2.2.b", edited(packet(query), func(p []byte) { p[7] = 2 }), 0, none},
		{"2.2.c", edited(packet(query), func(p []byte) { p[7] = 255 }), 0, none},
		{"2.3.a", mld.AppendQuery(nil, netip.IPv6Unspecified(), group, query), 0, none},
		{"2.3.b", mld.AppendQuery(nil, global, group, query), 0, none},
		{"2.3.c", mld.AppendQuery(nil, mld.AllNodes, group, query), 0, none},
		{"2.4.a", mld.AppendQuery(nil, querier, own, about(netip.IPv6Unspecified())), time.Second, all},
		{"2.4.b", mld.AppendQuery(nil, querier, global, about(netip.IPv6Unspecified())), time.Second, all},
		{"2.4.c", mld.AppendQuery(nil, querier, mld.AllNodes, asking(source(1))), time.Second, all},
		{"2.5.a", func() []byte { // the message right after the IPv6 header
			p := packet(query)
			p[6] = 58
			binary.BigEndian.PutUint16(p[4:], uint16(len(p)-48))
			return append(p[:40:40], p[48:]...)
		}(), 0, none},
		{"2.5.b", edited(packet(query), func(p []byte) { copy(p[42:], []byte{1, 4, 0, 0, 0, 0}) }), 0, none},
		{"2.6.a", sized(packet(query), 26), 0, none},
		{"2.6.b", edited(packet(query), func(p []byte) { p[5] = 32 }), 0, none},
		{"2.6.c", edited(packet(query), func(p []byte) { p[5] = 52 }), 0, none},
		{"2.6.d", edited(resealed(append(packet(query), 1, 2, 3, 4), func([]byte) {}), func(p []byte) { p[5] = 36 }), 0, none},
		{"2.7", resealed(packet(query), func(m []byte) { m[0] = 190 }), 0, none},
		{"2.8", resealed(packet(query), func(m []byte) { m[1] = 255 }), time.Second, all},
		{"2.9", edited(packet(query), func(p []byte) { p[50], p[51] = 0, 0 }), 0, none},
		{"2.10.a", packet(code(0)), time.Millisecond, all},
		{"2.10.b", packet(code(2000)), 2 * time.Second, all},
		{"2.10.c", packet(code(20000)), 20 * time.Second, all},
		{"2.10.d", packet(code(0x9000)), 65536 * time.Millisecond, all},
		{"2.11", resealed(packet(query), func(m []byte) { m[6], m[7], m[24] = 0xff, 0xff, m[24]|0xf0 }), time.Second, all},
		{"2.12.a", packet(about(netip.IPv6Unspecified(), source(1))), 0, none},
		{"2.12.b", packet(about(netip.IPv6Unspecified(), source(1), source(2))), 0, none},
		{"2.12.c", packet(about(own)), 0, none},
		{"2.12.d", packet(about(global, source(1))), 0, none},
		{"2.12.e", packet(about(mld.AllNodes)), 0, none},
		{"2.12.f", packet(about(netip.MustParseAddr("ff05::77"))), 0, none},
		{"2.13.a", resealed(packet(query), func(m []byte) { m[24] |= 8 }), time.Second, all},
		{"2.14.a", resealed(packet(query), func(m []byte) { m[24] = 0 }), time.Second, all},
		{"2.14.b", resealed(packet(query), func(m []byte) { m[24] = 7 }), time.Second, all},
		{"2.15.a", resealed(packet(query), func(m []byte) { m[25] = 0 }), time.Second, all},
		{"2.15.b", resealed(packet(query), func(m []byte) { m[25] = 255 }), time.Second, all},
		{"2.16.a", count(packet(query), 1), 0, none},
		{"2.16.b", count(packet(asking(source(2))), 0), time.Second, all},
		{"2.16.c", count(packet(asking(source(1))), 2), 0, none},
		{"2.16.d", count(packet(asking(source(2), source(1))), 1), 0, none}, // only the first counts, which is not wanted
		{"2.16.d", count(packet(asking(source(1), source(2))), 1), time.Second, all},
		{"2.17.a", packet(asking(netip.IPv6Unspecified())), 0, none},
		{"2.17.b", packet(asking(own)), 0, none},
		{"2.17.c", packet(asking(global)), 0, none},
		{"2.17.d", packet(asking(querier)), 0, none},
		{"2.17.e", packet(asking(mld.AllNodes)), 0, none},
		{"2.17.f", packet(asking(group)), 0, none},
		{"2.18", sized(packet(query), 40), time.Second, all},
	} {
		t.Run("TAHI "+tt.part, func(t *testing.T) {
			n := newNode(t, listener.Config{}, &share{1, 1})
			n.do(0, "source", []string{"fe80::a"})
			n.do(0, "listen", []string{"ff05::8", "IN(s1)"})
			n.runUntil(10 * time.Second)
			n.transcript = nil
			if p, err := mld.Parse(tt.packet, 0); err == nil {
				n.l.Receive(epoch.Add(n.now), p.Src, p.Message)
				n.drain()
			}
			n.runUntil(forever)
			var want []string
			if tt.want != "" {
				at := 10*time.Second + tt.within - min(tt.within/4, 5*time.Millisecond)
				if tt.part == "2.10.a" {
					at = 10*time.Second + 1
				}
				want = []string{fmt.Sprint(at, " > ", tt.want)}
			}
			if diff := cmp.Diff(want, n.transcript); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TAHI 2.1 and gVisor's TestMGPCoalescedQueryResponseRecords: records up to the MTU and not one more; 1500 octets
// hold 72 without sources, 1280 hold 61.
func TestV2_46_Packing(t *testing.T) {
	for _, tt := range []struct {
		mtu, full int
	}{{1500, 72}, {1499, 72}, {1496, 72}, {1495, 71}, {1280, 61}, {1000, 61}, {0, 61}, {-1, 61}, {9000, 447}, {65535, 3273}, {1 << 20, 3275}} {
		for more := -1; more <= 2; more++ {
			n := newNode(t, listener.Config{Robustness: 1}, &share{1, 1})
			n.do(0, "source", []string{"fe80::a"})
			n.l.SetMTU(tt.mtu)
			for i := range tt.full + more {
				if err := n.l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
					t.Fatal(err)
				}
			}
			var changed, answered []int
			for p := range n.l.Outgoing() {
				changed = append(changed, p.Records)
			}
			n.do(0, "query2", []string{"::", "1s"})
			n.l.Advance(epoch.Add(time.Second))
			for p := range n.l.Outgoing() {
				answered = append(answered, p.Records)
			}
			want := []int{tt.full, more}
			if more <= 0 {
				want = []int{tt.full + more}
			}
			if diff := cmp.Diff([][]int{want, want}, [][]int{changed, answered}); diff != "" {
				t.Errorf("MTU %d, %d addresses: records in each packet (-want +got):\n%s", tt.mtu, tt.full+more, diff)
			}
		}
	}
}
