//go:build twin

package twin

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A scenario is steps that both twins are put through, and what they say of the groups in the last round of them.
//
// Steps are separated by semicolons:
//
//	0 g EX{ab}           socket 0 wants of g all but a and b
//	0 g -                socket 0 leaves g
//	sent g               when a Report about g has been sent, but no other one
//	query 60             a General Query with a Maximum Response Delay of 60 ms
//	query 60 g ab qrv=3  one for g and sources a and b, with another Robustness Variable
//	v1 60 g              one of MLDv1
//	report g             another node's MLDv1 Report for g
//	end                  all has been told and answered; this ends a round
//	back                 the twin has returned to MLDv2
type scenario struct {
	rule  string
	name  string
	steps string

	ours      string // "g: TO_EX{} TO_EX{}; h: ..."
	kernel    string // if it is something else
	deviation string // why

	// What else has to be so, or chance has had it another way: the letters of the order of the last step's group, ours
	// and after a | the kernel's.
	when string
}

// The transitions of RFC 9777 section 6.1.
var changes = []scenario{
	// one socket, from and to nothing
	{rule: "V2-23", name: "join", steps: "0 g EX{}", ours: "g: TO_EX{} TO_EX{}"},
	{rule: "V2-23", name: "join but for sources", steps: "0 g EX{ab}", ours: "g: TO_EX{ab} TO_EX{ab}"},
	{rule: "V2-62", name: "join a source", steps: "0 g IN{a}", ours: "g: ALLOW{a} ALLOW{a}"},
	{rule: "V2-62", name: "join sources", steps: "0 g IN{abcd}", ours: "g: ALLOW{abcd} ALLOW{abcd}"},
	{rule: "V2-62", name: "join a source of an SSM group", steps: "0 s IN{a}", ours: "s: ALLOW{a} ALLOW{a}"},
	{rule: "V2-24", name: "leave", steps: "0 g EX{}; end; 0 g -", ours: "g: TO_IN{} TO_IN{}"},
	{rule: "V2-24", name: "leave all but sources", steps: "0 g EX{ab}; end; 0 g -", ours: "g: TO_IN{} TO_IN{}"},
	{rule: "V2-62", name: "leave sources", steps: "0 g IN{ab}; end; 0 g -", ours: "g: BLOCK{ab} BLOCK{ab}"},
	{rule: "V2-62", name: "leave sources of an SSM group", steps: "0 s IN{ab}; end; 0 s -",
		ours: "s: BLOCK{ab} BLOCK{ab}"},

	// one socket
	{rule: "V2-21", name: "IN to IN", steps: "0 g IN{ab}; end; 0 g IN{bc}",
		ours: "g: ALLOW{c}+BLOCK{a} ALLOW{c}+BLOCK{a}"},
	{rule: "V2-21", name: "IN to more", steps: "0 g IN{a}; end; 0 g IN{ab}", ours: "g: ALLOW{b} ALLOW{b}"},
	{rule: "V2-21", name: "IN to fewer", steps: "0 g IN{ab}; end; 0 g IN{b}", ours: "g: BLOCK{a} BLOCK{a}"},
	{rule: "V2-25", name: "IN to the same", steps: "0 g IN{ab}; end; 0 g IN{ab}"},
	{rule: "V2-22", name: "EX to EX", steps: "0 g EX{ab}; end; 0 g EX{bc}",
		ours: "g: ALLOW{a}+BLOCK{c} ALLOW{a}+BLOCK{c}"},
	{rule: "V2-22", name: "EX to more", steps: "0 g EX{}; end; 0 g EX{a}", ours: "g: BLOCK{a} BLOCK{a}"},
	{rule: "V2-22", name: "EX to fewer", steps: "0 g EX{ab}; end; 0 g EX{}", ours: "g: ALLOW{ab} ALLOW{ab}"},
	{rule: "V2-25", name: "EX to the same", steps: "0 g EX{ab}; end; 0 g EX{ab}"},
	{rule: "V2-23", name: "IN to EX", steps: "0 g IN{ab}; end; 0 g EX{bc}", ours: "g: TO_EX{bc} TO_EX{bc}"},
	{rule: "V2-23", name: "IN to all", steps: "0 g IN{ab}; end; 0 g EX{}", ours: "g: TO_EX{} TO_EX{}"},
	{rule: "V2-24", name: "EX to IN", steps: "0 g EX{ab}; end; 0 g IN{bc}", ours: "g: TO_IN{bc} TO_IN{bc}"},
	{rule: "V2-24", name: "all to IN", steps: "0 g EX{}; end; 0 g IN{a}", ours: "g: TO_IN{a} TO_IN{a}"},

	// a second socket
	{rule: "V2-16", name: "IN and IN", steps: "0 g IN{ab}; end; 1 g IN{c}", ours: "g: ALLOW{c} ALLOW{c}"},
	{rule: "V2-20", name: "IN and IN of the same", steps: "0 g IN{ab}; end; 1 g IN{a}"},
	{rule: "V2-16", name: "IN and EX", steps: "0 g IN{ab}; end; 1 g EX{}", ours: "g: TO_EX{} TO_EX{}"},
	{rule: "V2-20", name: "all and IN", steps: "0 g EX{}; end; 1 g IN{a}"},
	{rule: "V2-16", name: "EX and IN", steps: "0 g EX{ab}; end; 1 g IN{a}", ours: "g: ALLOW{a} ALLOW{a}"},
	{rule: "V2-16", name: "EX and all", steps: "0 g EX{ab}; end; 1 g EX{}", ours: "g: ALLOW{ab} ALLOW{ab}"},
	{rule: "V2-20", name: "all and all", steps: "0 g EX{}; end; 1 g EX{}"},
	{rule: "V2-16", name: "one of two: IN to IN", steps: "0 g IN{ab}; end; 1 g IN{c}; end; 0 g IN{cd}",
		ours: "g: ALLOW{d}+BLOCK{ab} ALLOW{d}+BLOCK{ab}"},
	{rule: "V2-20", name: "one of two: IN to what the other has",
		steps: "0 g IN{ab}; end; 1 g EX{}; end; 0 g IN{bc}"},
	{rule: "V2-16", name: "one of two: IN to IN beside EX", steps: "0 g EX{abc}; end; 1 g IN{a}; end; 1 g IN{bd}",
		ours: "g: ALLOW{b}+BLOCK{a} ALLOW{b}+BLOCK{a}"},
	{rule: "V2-16", name: "one of two: EX to EX", steps: "0 g EX{ab}; end; 1 g EX{}; end; 1 g EX{bc}",
		ours: "g: BLOCK{b} BLOCK{b}"},
	{rule: "V2-16", name: "one of two: EX to IN beside EX", steps: "0 g EX{ab}; end; 1 g EX{}; end; 1 g IN{a}",
		ours: "g: BLOCK{b} BLOCK{b}"},
	{rule: "V2-16", name: "one of two: EX to IN beside IN", steps: "0 g EX{ab}; end; 1 g IN{b}; end; 0 g IN{c}",
		ours: "g: TO_IN{bc} TO_IN{bc}"},
	{rule: "V2-16", name: "one of two: IN to EX", steps: "0 g IN{ab}; end; 1 g IN{c}; end; 1 g EX{ad}",
		ours: "g: TO_EX{d} TO_EX{d}"},
	{rule: "V2-16", name: "one of two leaves: EX beside IN", steps: "0 g EX{ab}; end; 1 g IN{bc}; end; 0 g -",
		ours: "g: TO_IN{bc} TO_IN{bc}"},
	{rule: "V2-16", name: "one of two leaves: IN beside EX", steps: "0 g EX{ab}; end; 1 g IN{b}; end; 1 g -",
		ours: "g: BLOCK{b} BLOCK{b}"},
	{rule: "V2-16", name: "one of two leaves: EX beside EX", steps: "0 g EX{ab}; end; 1 g EX{}; end; 1 g -",
		ours: "g: BLOCK{ab} BLOCK{ab}"},
	{rule: "V2-20", name: "one of two leaves: the same", steps: "0 g IN{ab}; end; 1 g IN{a}; end; 1 g -"},
	{rule: "V2-16", name: "one of three",
		steps: "0 g EX{abc}; end; 1 g EX{}; end; 1 g EX{bcd}; end; 2 g IN{c}; end; 2 g IN{bd}",
		ours:  "g: ALLOW{b}+BLOCK{c} ALLOW{b}+BLOCK{c}"},

	// before all retransmissions
	{rule: "V2-27", name: "EX, then IN", steps: "0 g EX{}; sent g; 0 g IN{a}", ours: "g: TO_EX{} TO_IN{a} TO_IN{a}"},
	{rule: "V2-65", name: "EX, then a source", steps: "0 g EX{}; sent g; 0 g EX{a}",
		ours: "g: TO_EX{} TO_EX{a} BLOCK{a}"},
	{rule: "V2-31", name: "EX, a source, another", steps: "0 g EX{}; sent g; 0 g EX{a}; sent g; 0 g EX{ab}",
		ours: "g: TO_EX{} TO_EX{a} BLOCK{ab} BLOCK{b}"},
	{rule: "V2-28", name: "IN, then a source", steps: "0 g IN{a}; sent g; 0 g IN{ab}",
		ours: "g: ALLOW{a} ALLOW{ab} ALLOW{b}"},
	{rule: "V2-30", name: "IN, then another", steps: "0 g IN{a}; sent g; 0 g IN{b}",
		ours: "g: ALLOW{a} ALLOW{b}+BLOCK{a} ALLOW{b}+BLOCK{a}"},
	{rule: "V2-30", name: "a source off and on", steps: "0 g IN{ab}; end; 0 g IN{a}; sent g; 0 g IN{ab}",
		ours: "g: BLOCK{b} ALLOW{b} ALLOW{b}"},
	{rule: "V2-29", name: "IN, a source, then EX", steps: "0 g IN{a}; end; 0 g IN{ab}; sent g; 0 g EX{c}",
		ours: "g: ALLOW{b} TO_EX{c} TO_EX{c}"},
	{rule: "V2-27", name: "EX, IN, EX", steps: "0 g EX{a}; sent g; 0 g IN{b}; sent g; 0 g EX{}",
		ours: "g: TO_EX{a} TO_IN{b} TO_EX{} TO_EX{}"},
	{rule: "V2-63", name: "join and leave", steps: "0 g EX{}; sent g; 0 g -", ours: "g: TO_EX{} TO_IN{} TO_IN{}"},
	{rule: "V2-63", name: "join a source and leave", steps: "0 s IN{a}; sent s; 0 s -",
		ours: "s: ALLOW{a} BLOCK{a} BLOCK{a}"},
	{rule: "V2-63", name: "leave and join", steps: "0 g EX{}; end; 0 g -; sent g; 0 g EX{}",
		ours: "g: TO_IN{} TO_EX{} TO_EX{}"},
	{rule: "V2-63", name: "leave a source and join it", steps: "0 g IN{a}; end; 0 g -; sent g; 0 g IN{a}",
		ours: "g: BLOCK{a} ALLOW{a} ALLOW{a}"},
	{rule: "V2-63", name: "leave a source and join another", steps: "0 s IN{a}; end; 0 s -; sent s; 0 s IN{b}",
		ours: "s: BLOCK{a} ALLOW{b}+BLOCK{a} ALLOW{b}"},
	{rule: "V2-63", name: "leave a source and join all", steps: "0 g IN{a}; end; 0 g -; sent g; 0 g EX{}",
		ours: "g: BLOCK{a} TO_EX{} TO_EX{}"},
	{rule: "V2-63", name: "leave and join a source", steps: "0 g EX{}; end; 0 g -; sent g; 0 g IN{a}",
		ours: "g: TO_IN{} TO_IN{a} ALLOW{a}", kernel: "g: TO_IN{} ALLOW{a} ALLOW{a}", deviation: "T1"},
	{rule: "V2-65", name: "all, a source, leave", steps: "0 g EX{}; end; 0 g IN{a}; sent g; 0 g -",
		ours: "g: TO_IN{a} TO_IN{} BLOCK{a}", kernel: "g: TO_IN{a} BLOCK{a} BLOCK{a}", deviation: "T2"},
	{rule: "V2-65", name: "all but a source, another, leave", steps: "0 g EX{b}; end; 0 g IN{a}; sent g; 0 g -",
		ours: "g: TO_IN{a} TO_IN{} BLOCK{a}", kernel: "g: TO_IN{a} BLOCK{ab} BLOCK{a}", deviation: "T2"},
	{rule: "V2-65", name: "all but a source, only it, leave", steps: "0 g EX{a}; end; 0 g IN{a}; sent g; 0 g -",
		ours: "g: TO_IN{a} TO_IN{} BLOCK{a}", kernel: "g: TO_IN{a} BLOCK{a}+1 BLOCK{a}", deviation: "T2"},
	{rule: "V2-64", name: "another group meanwhile", steps: "0 g EX{}; sent g; 0 h IN{a}",
		ours: "g: TO_EX{} TO_EX{}; h: ALLOW{a} ALLOW{a}"},
	{rule: "V2-20", name: "two changes at once", steps: "0 g EX{}; 0 g IN{a}", ours: "g: TO_EX{} TO_IN{a} TO_IN{a}",
		kernel: "g: TO_IN{a} TO_IN{a}", deviation: "L1"},

	// other Robustness Variables
	{rule: "V2-13", name: "QRV 3", steps: "query 10 qrv=3; end; 0 g EX{}", ours: "g: TO_EX{} TO_EX{} TO_EX{}"},
	{rule: "V2-65", name: "QRV 3, a source meanwhile",
		steps: "query 10 qrv=3; end; 0 g EX{}; sent g; sent g; 0 g EX{a}",
		ours:  "g: TO_EX{} TO_EX{} TO_EX{a} BLOCK{a} BLOCK{a}"},
	{rule: "V2-28", name: "QRV 3, a source earlier", steps: "query 10 qrv=3; end; 0 g EX{}; sent g; 0 g EX{a}",
		ours: "g: TO_EX{} TO_EX{a} TO_EX{a} BLOCK{a}"},
	{rule: "V2-13", name: "QRV 0", steps: "query 10 qrv=3; end; query 10 qrv=0; end; 0 g EX{}",
		ours: "g: TO_EX{} TO_EX{}", kernel: "g: TO_EX{} TO_EX{} TO_EX{}", deviation: "T9"},
	{rule: "V2-13", name: "QRV 1", steps: "query 10 qrv=1; end; 0 g EX{}", ours: "g: TO_EX{}",
		kernel: "g: TO_EX{} TO_EX{}", deviation: "L2"},
}

// The answers of section 6.2 and 6.3.
var answers = []scenario{
	{rule: "V2-40", name: "General Query", steps: "0 g EX{}; 0 h EX{ab}; 0 s IN{cd}; end; query 30",
		ours: "g: IS_EX{}; h: IS_EX{ab}; s: IS_IN{cd}"},
	{rule: "V2-36", name: "General Query twice", steps: "0 g EX{}; end; query 200; query 100", ours: "g: IS_EX{}",
		when: "G"},
	{rule: "V2-32", name: "Maximum Response Delay 0", steps: "0 g EX{a}; end; query 0", ours: "g: IS_EX{a}"},
	{rule: "V2-32", name: "Maximum Response Delay 0 for a group", steps: "0 g IN{ab}; end; query 0 g",
		ours: "g: IS_IN{ab}"},
	{rule: "V2-41", name: "address", steps: "0 g EX{a}; end; query 30 g", ours: "g: IS_EX{a}"},
	{rule: "V2-34", name: "address of nobody", steps: "0 g EX{a}; end; query 30 h"},
	{rule: "V2-78", name: "SSM address", steps: "0 s IN{ab}; end; query 30 s", ours: "s: IS_IN{ab}"},
	{rule: "V2-42", name: "sources in IN", steps: "0 s IN{ab}; end; query 30 s bc", ours: "s: IS_IN{b}"},
	{rule: "V2-34", name: "other sources in IN", steps: "0 s IN{ab}; end; query 30 s cd"},
	{rule: "V2-42", name: "excluded sources", steps: "0 g EX{abc}; end; query 30 g ab"},
	{rule: "V2-42", name: "sources in EX", steps: "0 g EX{ab}; end; query 30 g bc", ours: "g: IS_IN{c}",
		kernel: "g: IS_EX{ab}", deviation: "T4"},
	{rule: "V2-42", name: "sources of all", steps: "0 g EX{}; end; query 30 g bc", ours: "g: IS_IN{bc}",
		kernel: "g: IS_EX{}", deviation: "T4"},
	{rule: "V2-38", name: "sources, then all", steps: "0 g IN{abc}; end; query 200 g a; query 200 g",
		ours: "g: IS_IN{abc}", when: "a"},
	{rule: "V2-38", name: "all, then sources", steps: "0 g IN{abc}; end; query 200 g; query 200 g a",
		ours: "g: IS_IN{abc}", when: "a"},
	{rule: "V2-39", name: "sources, then others", steps: "0 g IN{abc}; end; query 200 g a; query 200 g bd",
		ours: "g: IS_IN{ab}", when: "a"},
	{rule: "V2-34", name: "sources, then unwanted ones", steps: "0 g IN{abc}; end; query 200 g a; query 200 g d",
		ours: "g: IS_IN{a}", kernel: "g: IS_IN{abc}", deviation: "T6", when: "a"},
	{rule: "V2-35", name: "General, then address", steps: "0 g EX{a}; end; query 60; query 1000 g",
		ours: "g: IS_EX{a}", kernel: "g: IS_EX{a} IS_EX{a}", deviation: "L12", when: "G|Ga"},
	{rule: "V2-44", name: "sources and General", steps: "0 g IN{abc}; end; query 400 g a; query 10",
		ours: "g: IS_IN{abc} IS_IN{a}", kernel: "g: IS_IN{a} IS_IN{abc}", deviation: "T3", when: "Ga"},
	{rule: "V2-45", name: "leave before a general answer", steps: "0 g EX{}; 0 h EX{}; end; query 200; 0 g -",
		ours: "g: TO_IN{} TO_IN{}; h: IS_EX{}", when: "tt"},
	{rule: "V2-45", name: "join before a general answer", steps: "0 h EX{}; end; query 200; 0 g IN{a}",
		ours: "g: ALLOW{a} ALLOW{a} IS_IN{a}; h: IS_EX{}", when: "ttG"},
	{rule: "V2-45", name: "leave before an answer", steps: "0 g EX{}; end; query 200 g; 0 g -",
		ours: "g: TO_IN{} TO_IN{}", when: "tt"},
	{rule: "V2-42", name: "a source joined before the answer", steps: "0 s IN{a}; end; query 200 s ab; 0 s IN{ab}",
		ours: "s: ALLOW{b} ALLOW{b} IS_IN{ab}", kernel: "s: ALLOW{b} ALLOW{b} IS_IN{a}", deviation: "T5", when: "tta"},
	{rule: "V2-43", name: "the source left before the answer", steps: "0 s IN{ab}; end; query 200 s b; 0 s IN{a}",
		ours: "s: BLOCK{b} BLOCK{b}", kernel: "s: BLOCK{b} BLOCK{b} IS_IN{}", deviation: "T5", when: "tt|tta"},
	{rule: "V2-42", name: "a mode change before the answer before",
		steps: "0 g IN{ab}; end; 1 g IN{c}; end; query 200 g c; 0 g EX{}; end; 0 g IN{ab}; end; query 30 g a",
		ours:  "g: IS_IN{a}", kernel: "g: IS_IN{ac}", deviation: "T5"},
	{rule: "V2-34", name: "an unwanted source joined before the answer",
		steps: "0 s IN{a}; end; query 200 s b; 0 s IN{ab}", ours: "s: ALLOW{b} ALLOW{b}"},
	{rule: "V2-55", name: "another node's Report", steps: "0 g EX{}; end; query 200 g; report g",
		ours: "g: IS_EX{}", kernel: " ", deviation: "L17", when: "a|"},
	{rule: "V2-55", name: "another node's Report for an SSM group", steps: "0 s IN{a}; end; query 200 s; report s",
		ours: "s: IS_IN{a}", kernel: " ", deviation: "T12", when: "a|"},
	{rule: "V2-55", name: "another node's Report before a general answer",
		steps: "0 g EX{}; end; query 200; report g", ours: "g: IS_EX{}", when: "G"},
}

// short makes the Older Version Querier Present Timeout 2 s.
const short = "query 10 qqi=1; end; "

// MLDv1 mode, section 8.2. Each scenario ends with the return to MLDv2.
var older = []scenario{
	{rule: "V2-50", name: "General Query of MLDv1",
		steps: "0 g EX{}; 0 h IN{a}; 0 s IN{a}; end; " + short + "v1 30", ours: "g: Report; h: Report; s: Report"},
	{rule: "V2-50", name: "join", steps: short + "v1 0; end; 0 g EX{}", ours: "g: Report Report"},
	{rule: "V2-50", name: "join sources", steps: short + "v1 0; end; 0 s IN{ab}", ours: "s: Report Report"},
	{rule: "V2-50", name: "leave", steps: "0 g EX{}; end; " + short + "v1 0; end; 0 g -", ours: "g: Done"},
	{rule: "V2-50", name: "join and leave", steps: short + "v1 0; end; 0 g EX{}; sent g; 0 g -",
		ours: "g: Report Done"},
	{rule: "V2-50", name: "change of sources", steps: "0 g EX{a}; end; " + short + "v1 0; end; 0 g IN{b}"},
	{rule: "V2-67", name: "back", steps: "0 g EX{}; 0 s IN{a}; end; " + short + "v1 0; end; back"},
	{rule: "V2-54", name: "leave after the return",
		steps: "0 g EX{}; end; " + short + "v1 0; end; back; end; 0 g -", ours: "g: TO_IN{} TO_IN{}"},
	{rule: "V2-49", name: "Query of MLDv1 for an address",
		steps: "0 g EX{}; 0 h EX{}; end; " + short + "v1 30 g; end; 0 i EX{}", ours: "i: Report Report"},
	{rule: "V2-52", name: "Query of MLDv2 in MLDv1 mode",
		steps: "0 g EX{}; 0 s IN{a}; end; " + short + "v1 0; end; query 30 qqi=1", ours: "g: Report; s: Report"},
	{rule: "V2-52", name: "Query of MLDv2 for sources in MLDv1 mode",
		steps: "0 g EX{}; 0 s IN{a}; end; " + short + "v1 0; end; query 30 s b qqi=1", ours: "s: Report"},
	{rule: "V2-53", name: "pending general answer", steps: "0 g EX{}; end; " + short + "query 1000 qqi=1; v1 10 h"},
	{rule: "V2-53", name: "pending answer", steps: "0 g EX{}; end; " + short + "query 500 g qqi=1; v1 0 h",
		ours: "", kernel: "g: Report", deviation: "T7"},
	{rule: "V2-53", name: "pending change", steps: short + "0 g EX{}; sent g; v1 0 h", ours: "g: TO_EX{}"},
	{rule: "V2-53", name: "pending change, after the return", steps: short + "0 g EX{}; sent g; v1 0 h; end; back",
		ours: "", kernel: "g: TO_EX{}", deviation: "T8"},
	{rule: "V2-53", name: "pending change, after the return and another",
		steps: short + "0 g EX{}; sent g; v1 0 h; end; back; end; 0 g EX{a}", ours: "g: BLOCK{a} BLOCK{a}"},
	{rule: "V2-67", name: "change in MLDv1 mode, after the return",
		steps: "0 g EX{}; end; " + short + "v1 0; end; 0 g EX{a}; end; back", ours: "", kernel: "g: BLOCK{a} BLOCK{a}",
		deviation: "T8"},
	{rule: "V2-53", name: "pending leave", steps: "0 g EX{}; end; " + short + "0 g -; sent g; v1 0 h",
		ours: "g: TO_IN{} Done", kernel: "g: TO_IN{}", deviation: "L14"},
	{rule: "V2-66", name: "leave what was never answered for",
		steps: "0 g EX{}; end; " + short + "v1 0 h; end; 0 g -", ours: "g: Done", kernel: " ", deviation: "T10"},
	{rule: "V1-18", name: "another node's Report",
		steps: "0 g EX{}; end; " + short + "v1 0; end; v1 500 g; report g", when: "|"},
	{rule: "V1-31", name: "another node's Report, then leave",
		steps: "0 g EX{}; end; " + short + "v1 0; end; v1 500 g; report g; end; 0 g -"},
	{rule: "V1-19", name: "another node's Report when idle, then leave",
		steps: "0 g EX{}; end; " + short + "v1 0; end; report g; end; 0 g -", ours: "g: Done", kernel: " ",
		deviation: "L16"},
	{rule: "V2-55", name: "another node's Report for an SSM group in MLDv1 mode",
		steps: "0 s IN{a}; end; " + short + "v1 0; end; v1 300 s; report s", ours: "s: Report", kernel: " ",
		deviation: "T12", when: "t|"},
}

// TestV2_20_V2_31_Changes puts both twins through the transitions of RFC 9777 section 6.1.
func TestV2_20_V2_31_Changes(t *testing.T) { parallel(t, 4, changes) }

// TestV2_32_V2_45_Answers asks both twins.
func TestV2_32_V2_45_Answers(t *testing.T) { parallel(t, 4, answers) }

// TestV2_49_V2_68_Older has an older querier about.
func TestV2_49_V2_68_Older(t *testing.T) { parallel(t, 8, older) }

// parallel runs scenarios in a few labs at a time.
func parallel(t *testing.T, labs int, list []scenario) {
	t.Parallel()
	for i, part := range slices.Collect(slices.Chunk(list, (len(list)+labs-1)/labs)) {
		t.Run(fmt.Sprint("lab ", i), func(t *testing.T) {
			t.Parallel()
			runScenarios(t, part)
		})
	}
}

// attempts is how often a scenario is tried until chance has it in the order that is wanted.
const attempts = 8

// A part is the rounds of a scenario in what a twin has done.
type part struct {
	scenario
	begin, last, end int
}

func runScenarios(t *testing.T, list []scenario) {
	r := newRig(t)
	for range attempts {
		var parts []part
		for _, s := range list {
			p := part{scenario: s, begin: r.rounds}
			r.run(parse(t, s.steps))
			p.last = r.rounds - 1
			r.run(r.clean())
			p.end = r.rounds
			parts = append(parts, p)
		}
		kernel, ours := r.kernel.rounds(r.kernel.packets(t.Context())), r.ours.rounds(r.ours.packets(t.Context()))
		list = nil
		for _, p := range parts {
			if !r.check(t, p, kernel, ours) {
				list = append(list, p.scenario)
			}
		}
		if len(list) == 0 {
			return
		}
	}
	for _, s := range list {
		t.Errorf("%s: chance did not have it in the order that was wanted in %d attempts", s.name, attempts)
	}
}

// clean are the steps that bring both twins back to nothing.
func (r *rig) clean() []step {
	var steps []step
	if r.ours.spec.v1 || r.kernel.spec.v1 {
		steps = append(steps, step{back: true}, step{end: true})
	}
	for n, g := range r.ours.spec.groups {
		for socket := range g.sockets {
			if !n.helper() {
				steps = append(steps, step{listen: &listen{socket: socket, group: n}}, step{sent: n})
			}
		}
	}
	steps = append(steps, step{end: true})
	if r.ours.qrv != 2 || r.ours.qqi != 125 {
		steps = append(steps, parse(r, "query 0")...)
	}
	return steps
}

// parse reads the steps of a scenario, and adds an end.
func parse(tb testing.TB, text string) []step {
	tb.Helper()
	var steps []step
	for _, part := range strings.Split(text+"; end", ";") {
		s, err := parseStep(strings.Fields(part))
		if err != nil {
			tb.Fatalf("%q: %v", part, err)
		}
		steps = append(steps, s)
	}
	return steps
}

func parseStep(word []string) (step, error) {
	switch word[0] {
	case "end":
		return step{end: true}, nil
	case "back":
		return step{back: true}, nil
	case "sent":
		return step{sent: name(word[1][0])}, nil
	case "report":
		return step{report: name(word[1][0])}, nil
	case "query", "v1":
		q := &query{version: 2, qrv: 2, qqi: 125}
		if word[0] == "v1" {
			q.version = 1
		}
		ms, err := strconv.Atoi(word[1])
		q.delay = time.Duration(ms) * time.Millisecond
		for _, w := range word[2:] {
			switch key, value, found := strings.Cut(w, "="); {
			case found && key == "qrv":
				q.qrv, err = strconv.Atoi(value)
			case found && key == "qqi":
				q.qqi, err = strconv.Atoi(value)
			case q.group == nobody:
				q.group = name(w[0])
			default:
				q.sources = setOf(w)
			}
		}
		return step{query: q}, err
	}
	socket, err := strconv.Atoi(word[0])
	l := &listen{socket: socket, group: name(word[1][0])}
	if word[2] != "-" {
		l.filter = filter{exclude: strings.HasPrefix(word[2], "EX"), sources: setOf(strings.Trim(word[2], "INEX{}"))}
	}
	return step{listen: l}, err
}

// check compares what both twins have said with what a scenario wants; false means that chance has had it in another
// order.
func (r *rig) check(t *testing.T, p part, kernel, ours []round) bool {
	t.Helper()
	s, k, o := p.scenario, kernel[p.last], ours[p.last]
	wantKernel := s.ours
	if s.deviation != "" {
		wantKernel = s.kernel
	}
	var errs []string
	for _, x := range slices.Concat(kernel[p.begin:p.end], ours[p.begin:p.end]) {
		if x.err != nil {
			errs = append(errs, fmt.Sprintf("%s: %v", textOf(x.steps), x.err))
		}
	}
	whenOurs, whenKernel, both := strings.Cut(s.when, "|")
	if !both {
		whenKernel = whenOurs
	}
	inOrder := true
	for i, steps := range roundsOf(parse(t, s.steps)) {
		if p.begin+i < p.last {
			inOrder = inOrder && kernel[p.begin+i].inOrder(steps, s, false, "") && ours[p.begin+i].inOrder(steps, s, false, "")
		} else {
			inOrder = inOrder && k.inOrder(steps, s, s.when != "", whenKernel) && o.inOrder(steps, s, s.when != "", whenOurs)
		}
	}
	unlike := inOrder && (k.text() != strings.TrimSpace(wantKernel) || o.text() != s.ours)
	if inOrder && !unlike {
		known := slices.Concat(slices.Collect(maps.Values(k.deviated))...)
		if s.deviation == "" && len(known) > 0 || s.deviation != "" && s.deviation != "L1" && s.deviation != "T9" &&
			s.deviation != "L2" && !slices.Contains(known, s.deviation) {
			errs = append(errs, fmt.Sprintf("the spec has the kernel deviate by %v, the scenario by %q", known, s.deviation))
		}
	}
	if unlike || len(errs) > 0 {
		t.Errorf("%s, %s (%s):\n  kernel %q, want %q\n  ours   %q, want %q\n%s", s.rule, s.name, s.steps,
			k.text(), wantKernel, o.text(), s.ours, strings.Join(errs, "\n"))
		r.kernel.tell(t, k)
		r.ours.tell(t, o)
	}
	return inOrder
}

// roundsOf splits steps at their ends.
func roundsOf(steps []step) [][]step {
	list := [][]step{nil}
	for _, s := range steps {
		if s.end {
			list = append(list, nil)
		} else {
			list[len(list)-1] = append(list[len(list)-1], s)
		}
	}
	return list[:len(list)-1]
}

// inOrder tells whether chance had the round in the order that the scenario is about: as many transmissions between
// the changes of a group as the steps wait for, and the letters of the first group as they should be.
func (r round) inOrder(steps []step, s scenario, ordered bool, when string) bool {
	want, index, last := map[name]string{}, 0, nobody
	for _, x := range steps {
		switch {
		case x.sent != nobody:
			want[x.sent] += "t"
			continue
		case x.listen != nil:
			want[x.listen.group] += strconv.Itoa(index)
			last = x.listen.group
		case x.report != nobody:
			last = x.report
		case x.query != nil:
			last = x.query.group
			for n := range want {
				want[n] += strconv.Itoa(index)
			}
		}
		index++
	}
	if s.deviation == "L1" {
		want = nil
	}
	for n, prefix := range want {
		got := strings.Map(func(c rune) rune {
			if c == 'a' || c == 'G' || !strings.ContainsRune(prefix, c) && c != 't' {
				return -1
			}
			return c
		}, r.order[n])
		if !strings.HasPrefix(got, prefix) || strings.ContainsAny(strings.TrimPrefix(got, prefix), "0123456789") {
			return false
		}
	}
	if !ordered {
		return true
	}
	// When nothing is waited for, all steps come first.
	if last == nobody {
		last = name(s.ours[0])
	}
	order := r.order[last]
	got := strings.TrimLeft(order, "0123456789")
	if len(want) > 0 {
		got = strings.Map(func(c rune) rune {
			if c >= '0' && c <= '9' {
				return -1
			}
			return c
		}, order)
	}
	return got == when
}

// text is what the round said, in the form of a scenario.
func (r round) text() string {
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(r.said)) {
		parts = append(parts, fmt.Sprintf("%s: %s", n, strings.Join(r.said[n], " ")))
	}
	return strings.Join(parts, "; ")
}
