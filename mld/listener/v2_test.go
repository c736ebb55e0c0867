package listener_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// v2Scenarios are the rules of MLDv2. Unless a scenario draws otherwise, every delay is the longest: 1 s for a
// repeat, the Maximum Response Delay less the margin for an answer.
var v2Scenarios = []struct {
	rule, name string
	cfg        listener.Config
	transcript string
}{
	// The interface's state.
	{rule: "V2-1 V2-20 V2-23 V2-26", name: "join", transcript: `
		0s   source fe80::a
		0s   listen ff05::8 EX()
		0s   > TO_EX(ff05::8)
		0s   ? ff05::8
		0s   = ff05::8 EX() Delaying due 1s
		1s   > TO_EX(ff05::8)
		1s   ? ff05::8
		1s   = ff05::8 EX() Idle
		1h   wait
	`},
	{rule: "V2-16", name: "the interface's filter, the example of section 4.2", transcript: `
		0s   source fe80::a
		0s   listen ff05::8 EX(s1,s2,s3,s4) by 1
		0s   > TO_EX(ff05::8; s1-s4)
		1s   > TO_EX(ff05::8; s1-s4)
		2s   listen ff05::8 EX(s2,s3,s4,s5) by 2
		2s   > ALLOW(ff05::8; s1)
		2s   ? ff05::8
		2s   = ff05::8 EX(s2,s3,s4) Delaying due 3s
		3s   > ALLOW(ff05::8; s1)
		4s   listen ff05::8 IN(s4,s5,s6) by 3
		4s   > ALLOW(ff05::8; s4)
		4s   ? ff05::8
		4s   = ff05::8 EX(s2,s3) Delaying due 5s
		5s   > ALLOW(ff05::8; s4)
		6s   listen ff05::8 EX() by 4
		6s   > ALLOW(ff05::8; s2,s3)
		6s   ? ff05::8
		6s   = ff05::8 EX() Delaying due 7s
		7s   > ALLOW(ff05::8; s2,s3)
	`},
	{rule: "V2-16", name: "all INCLUDE is INCLUDE of all", transcript: `
		0s   source fe80::a
		0s   listen ff05::8 IN(s1,s2,s3) by 1
		0s   > ALLOW(ff05::8; s1,s2,s3)
		0s   listen ff05::8 IN(s2,s3,s4) by 2
		0s   > ALLOW(ff05::8; s1-s4)
		0s   listen ff05::8 IN(s5,s6) by 3
		0s   > ALLOW(ff05::8; s4,s5,s6)
		0s   ? ff05::8
		0s   = ff05::8 IN(s1-s6) Delaying due 1s
		1s   > ALLOW(ff05::8; s5,s6)
		2s   listen ff05::8 EX(s1) by 3
		2s   > TO_EX(ff05::8)
		3s   > TO_EX(ff05::8)
		4s   listen ff05::8 IN() by 3
		4s   > TO_IN(ff05::8; s1-s4)
		4s   ? ff05::8
		4s   = ff05::8 IN(s1-s4) Delaying due 5s
		5s   > TO_IN(ff05::8; s1-s4)
	`},
	{rule: "V2-18", name: "addresses that are never reported", transcript: `
		0s   source fe80::a
		0s   listen ff02::1 EX()
		0s   listen ff02::1 IN(s1) by 2
		0s   listen ff01::8 EX(s1)
		0s   listen ff00::8 EX()
		0s   listen ff11::8 IN(s1,s2)
		0s   query2 :: 1s
		0s   query2 ff02::1 1s
		0s   query2 ff02::1 1s sources s1
		0s   query2 ff01::8 1s
		0s   source ::
		0s   source fe80::b
		1s   ? ff02::1
		1s   = ff02::1 EX() Idle
		1s   ? ff01::8
		1s   = ff01::8 EX(s1) Idle
		2s   listen ff11::8 EX()
		2s   listen ff01::8 IN()
		2s   listen ff02::1 IN()
		2s   ? ff01::8
		2s   = ff01::8 Non-Listener
		1h   wait
	`},
	{rule: "V2-18", name: "every scope from 2 up is reported", cfg: listener.Config{Robustness: 1}, transcript: `
		0s   source fe80::a
		0s   listen ff02::2 EX()
		0s   > TO_EX(ff02::2)
		0s   listen ff02::1:ff00:a EX()
		0s   > TO_EX(ff02::1:ff00:a)
		0s   listen ff03::1 EX()
		0s   > TO_EX(ff03::1)
		0s   listen ff04::1 EX()
		0s   > TO_EX(ff04::1)
		0s   listen ff0e::1 EX()
		0s   > TO_EX(ff0e::1)
		0s   listen ff0f::1 EX()
		0s   > TO_EX(ff0f::1)
	`},

	// State changes.
	{rule: "V2-20 V2-25", name: "what leaves the record as it was says nothing", transcript: `
		0s   source fe80::a
		0s   listen ff05::8 EX(s1)
		0s   > TO_EX(ff05::8; s1)
		1s   > TO_EX(ff05::8; s1)
		2s   listen ff05::8 EX(s1)
		2s   listen ff05::8 EX(s1,s2) by 2
		2s   listen ff05::8 IN(s2) by 3
		2s   listen ff05::8 EX(s1,s3) by 2
		2s   listen ff05::8 IN() by 3
		2s   listen ff05::8 IN() by 4
		2s   ? ff05::8
		2s   = ff05::8 EX(s1) Idle
		2s   listen ff05::8 IN() by 1
		2s   > BLOCK(ff05::8; s3)
		3s   > BLOCK(ff05::8; s3)
		1h   wait
	`},
	{rule: "V2-21", name: "INCLUDE to INCLUDE", transcript: `
		0s   source fe80::a
		0s   listen ff05::8 IN(s1,s2)
		0s   > ALLOW(ff05::8; s1,s2)
		1s   > ALLOW(ff05::8; s1,s2)
		2s   listen ff05::8 IN(s2,s3)
		2s   > ALLOW(ff05::8; s3) BLOCK(ff05::8; s1)
		3s   > ALLOW(ff05::8; s3) BLOCK(ff05::8; s1)
	`},
	{rule: "V2-22", name: "EXCLUDE to EXCLUDE", transcript: `
		0s   source fe80::a
		0s   listen ff05::8 EX(s1,s2)
		0s   > TO_EX(ff05::8; s1,s2)
		1s   > TO_EX(ff05::8; s1,s2)
		2s   listen ff05::8 EX(s2,s3)
		2s   > ALLOW(ff05::8; s1) BLOCK(ff05::8; s3)
		3s   > ALLOW(ff05::8; s1) BLOCK(ff05::8; s3)
	`},
	{rule: "V2-23 V2-24", name: "mode changes", transcript: `
		0s   source fe80::a
		0s   listen ff05::8 IN(s1)
		0s   > ALLOW(ff05::8; s1)
		1s   > ALLOW(ff05::8; s1)
		2s   listen ff05::8 EX(s1,s2)
		2s   > TO_EX(ff05::8; s1,s2)
		3s   > TO_EX(ff05::8; s1,s2)
		4s   listen ff05::8 IN(s3)
		4s   > TO_IN(ff05::8; s3)
		5s   > TO_IN(ff05::8; s3)
		6s   listen ff05::8 EX()
		6s   > TO_EX(ff05::8)
		7s   > TO_EX(ff05::8)
		8s   listen ff05::8 IN()
		8s   > TO_IN(ff05::8)
		8s   ? ff05::8
		8s   = ff05::8 Non-Listener
		9s   > TO_IN(ff05::8)
	`},
	{rule: "V2-25 V2-21 V2-22", name: "the empty one of ALLOW and BLOCK is left out", transcript: `
		0s   source fe80::a
		0s   listen ff05::8 IN(s1)
		0s   > ALLOW(ff05::8; s1)
		1s   > ALLOW(ff05::8; s1)
		2s   listen ff05::8 IN(s1,s2)
		2s   > ALLOW(ff05::8; s2)
		3s   > ALLOW(ff05::8; s2)
		4s   listen ff05::8 IN(s2)
		4s   > BLOCK(ff05::8; s1)
		5s   > BLOCK(ff05::8; s1)
		6s   listen ff05::9 EX(s1)
		6s   > TO_EX(ff05::9; s1)
		7s   > TO_EX(ff05::9; s1)
		8s   listen ff05::9 EX(s1,s2)
		8s   > BLOCK(ff05::9; s2)
		9s   > BLOCK(ff05::9; s2)
		10s  listen ff05::9 EX(s2)
		10s  > ALLOW(ff05::9; s1)
		11s  > ALLOW(ff05::9; s1)
	`},
	{rule: "V2-26", name: "a repeat as soon as can be, which is never at once", cfg: listener.Config{Robustness: 3}, transcript: `
		0s   source fe80::a
		0s   draw 0/1
		0s   listen ff05::8 EX()
		0s   > TO_EX(ff05::8)
		1ns  > TO_EX(ff05::8)
		2ns  > TO_EX(ff05::8)
	`},
	{rule: "V2-26", name: "changes of one instant are repeated in one Report, later ones at a time of their own", cfg: listener.Config{Robustness: 3}, transcript: `
		0s     source fe80::a
		0s     draw 1/2
		0s     listen ff05::8 EX()
		0s     > TO_EX(ff05::8)
		0s     draw 1/4
		0s     listen ff05::9 EX()
		0s     > TO_EX(ff05::9)
		0.1s   listen ff05::a EX()
		0.1s   > TO_EX(ff05::a)
		0.35s  > TO_EX(ff05::a)
		0.5s   > TO_EX(ff05::8) TO_EX(ff05::9)
		0.6s   > TO_EX(ff05::a)
		0.75s  > TO_EX(ff05::8) TO_EX(ff05::9)
		1h     wait
	`},
	{rule: "V2-26", name: "robustness 1 has no repeat", cfg: listener.Config{Robustness: 1}, transcript: `
		0s   source fe80::a
		0s   listen ff05::8 IN(s1)
		0s   > ALLOW(ff05::8; s1)
		0s   ? ff05::8
		0s   = ff05::8 IN(s1) Idle
		1s   listen ff05::8 IN()
		1s   > BLOCK(ff05::8; s1)
		1h   wait
	`},
	{rule: "V2-27", name: "a further change restarts the series", cfg: listener.Config{Robustness: 3}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1)
		0s      > ALLOW(ff05::8; s1)
		0.5s    listen ff05::8 IN(s1,s2)
		0.5s    > ALLOW(ff05::8; s1,s2)
		1.5s    > ALLOW(ff05::8; s1,s2)
		2s      listen ff05::8 IN(s1,s2,s3)
		2s      > ALLOW(ff05::8; s2,s3)
		3s      > ALLOW(ff05::8; s3)
		4s      > ALLOW(ff05::8; s3)
	`},
	{rule: "V2-28", name: "every Report counts, that with a mode record too", transcript: `
		0s     source fe80::a
		0s     listen ff05::8 EX(s1,s3)
		0s     > TO_EX(ff05::8; s1,s3)
		0.5s   listen ff05::8 EX(s2,s3)
		0.5s   > TO_EX(ff05::8; s2,s3)
		1.5s   > ALLOW(ff05::8; s1) BLOCK(ff05::8; s2)
		1h     wait
	`},
	{rule: "V2-28", name: "a source that changes again counts from the beginning", cfg: listener.Config{Robustness: 3}, transcript: `
		0s     source fe80::a
		0s     listen ff05::8 IN(s1,s2)
		0s     > ALLOW(ff05::8; s1,s2)
		1s     > ALLOW(ff05::8; s1,s2)
		1.5s   listen ff05::8 IN(s2)
		1.5s   > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1)
		2.5s   > BLOCK(ff05::8; s1)
		3.5s   > BLOCK(ff05::8; s1)
	`},
	{rule: "V2-29 V2-31 V2-65", name: "list changes while the mode is being told", cfg: listener.Config{Robustness: 3}, transcript: `
		0s     source fe80::a
		0s     listen ff05::8 EX()
		0s     > TO_EX(ff05::8)
		0.2s   listen ff05::8 EX(s1)
		0.2s   > TO_EX(ff05::8; s1)
		0.4s   listen ff05::8 EX(s1,s2)
		0.4s   > TO_EX(ff05::8; s1,s2)
		1.4s   > BLOCK(ff05::8; s1,s2)
		2.4s   > BLOCK(ff05::8; s2)
	`},
	{rule: "V2-29", name: "the mode flaps: each Report tells the current one", cfg: listener.Config{Robustness: 3}, transcript: `
		0s     source fe80::a
		0s     listen ff05::8 EX(s1)
		0s     > TO_EX(ff05::8; s1)
		0.2s   listen ff05::8 IN(s2)
		0.2s   > TO_IN(ff05::8; s2)
		0.4s   listen ff05::8 EX()
		0.4s   > TO_EX(ff05::8)
		1.4s   > TO_EX(ff05::8)
		2.4s   > TO_EX(ff05::8)
	`},
	{rule: "V2-30", name: "a source that comes and goes is sorted anew each time", cfg: listener.Config{Robustness: 3}, transcript: `
		0s     source fe80::a
		0s     listen ff05::8 IN(s9)
		0s     > ALLOW(ff05::8; s9)
		1s     > ALLOW(ff05::8; s9)
		2s     > ALLOW(ff05::8; s9)
		10s    listen ff05::8 IN(s1,s2,s9)
		10s    > ALLOW(ff05::8; s1,s2)
		10.1s  listen ff05::8 IN(s2,s9)
		10.1s  > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1)
		10.2s  listen ff05::8 IN(s1,s2,s9)
		10.2s  > ALLOW(ff05::8; s1,s2)
		11.2s  > ALLOW(ff05::8; s1)
		12.2s  > ALLOW(ff05::8; s1)
		20s    listen ff05::9 EX(s9)
		20s    > TO_EX(ff05::9; s9)
		21s    > TO_EX(ff05::9; s9)
		22s    > TO_EX(ff05::9; s9)
		30s    listen ff05::9 EX(s1,s9)
		30s    > BLOCK(ff05::9; s1)
		30.1s  listen ff05::9 EX(s9)
		30.1s  > ALLOW(ff05::9; s1)
		31.1s  > ALLOW(ff05::9; s1)
		32.1s  > ALLOW(ff05::9; s1)
	`},
	{rule: "V2-17 V2-62", name: "what is not there is INCLUDE({})", transcript: `
		0s   source fe80::a
		0s   listen ff05::8 IN()
		1s   listen ff05::8 IN(s1)
		1s   > ALLOW(ff05::8; s1)
		2s   > ALLOW(ff05::8; s1)
		3s   listen ff05::8 IN()
		3s   > BLOCK(ff05::8; s1)
		4s   > BLOCK(ff05::8; s1)
		5s   listen ff05::8 EX(s1)
		5s   > TO_EX(ff05::8; s1)
		6s   > TO_EX(ff05::8; s1)
		7s   listen ff05::8 IN()
		7s   > TO_IN(ff05::8)
		8s   > TO_IN(ff05::8)
		9s   listen ff05::8 IN()
		1h   wait
	`},
	{rule: "V2-63", name: "a leave is told to the end", cfg: listener.Config{Robustness: 4}, transcript: `
		0s     source fe80::a
		0s     listen ff05::8 EX()
		0s     > TO_EX(ff05::8)
		0.5s   listen ff05::8 IN()
		0.5s   > TO_IN(ff05::8)
		1.5s   > TO_IN(ff05::8)
		2.5s   > TO_IN(ff05::8)
		3.5s   > TO_IN(ff05::8)
		1h     wait
	`},
	{rule: "V2-63 V2-27", name: "a join while the leave is being told merges with it", cfg: listener.Config{Robustness: 3}, transcript: `
		0s     source fe80::a
		0s     listen ff05::8 EX()
		0s     > TO_EX(ff05::8)
		1s     > TO_EX(ff05::8)
		2s     > TO_EX(ff05::8)
		10s    listen ff05::8 IN()
		10s    > TO_IN(ff05::8)
		10.5s  listen ff05::8 IN(s1)
		10.5s  > TO_IN(ff05::8; s1)
		11.5s  > TO_IN(ff05::8; s1)
		12.5s  > ALLOW(ff05::8; s1)
		20s    listen ff05::8 IN()
		20s    > BLOCK(ff05::8; s1)
		20.5s  listen ff05::8 IN(s2) by 2
		20.5s  > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1)
		21.5s  > ALLOW(ff05::8; s2) BLOCK(ff05::8; s1)
		22.5s  > ALLOW(ff05::8; s2)
	`},
	{rule: "V2-64", name: "one address's series leaves another's alone", transcript: `
		0s     source fe80::a
		0s     listen ff05::8 EX()
		0s     > TO_EX(ff05::8)
		0.4s   listen ff05::9 EX()
		0.4s   > TO_EX(ff05::9)
		0.5s   listen ff05::9 EX(s1)
		0.5s   > TO_EX(ff05::9; s1)
		1s     > TO_EX(ff05::8)
		1.5s   > BLOCK(ff05::9; s1)
	`},
	{rule: "V2-64", name: "what is due together shares a Report", transcript: `
		0s     source fe80::a
		0s     listen ff05::8 EX()
		0s     > TO_EX(ff05::8)
		0s     listen ff05::9 IN(s1)
		0s     > ALLOW(ff05::9; s1)
		0s     listen ff3e::8000:1 IN(s1)
		0s     > ALLOW(ff3e::8000:1; s1)
		1s     > TO_EX(ff05::8) ALLOW(ff05::9; s1) ALLOW(ff3e::8000:1; s1)
	`},
	{rule: "V2-71", name: "each request replaces the one before", transcript: `
		0s   source fe80::a
		0s   draw 0/1
		0s   listen ff05::8 IN(s1,s1,s2,s1)
		0s   > ALLOW(ff05::8; s1,s2)
		1ns  > ALLOW(ff05::8; s1,s2)
		1s   listen ff05::8 IN(s3)
		1s   > ALLOW(ff05::8; s3) BLOCK(ff05::8; s1,s2)
		1.000000001s > ALLOW(ff05::8; s3) BLOCK(ff05::8; s1,s2)
		2s   listen ff05::8 EX(s2)
		2s   > TO_EX(ff05::8; s2)
		2.000000001s > TO_EX(ff05::8; s2)
		3s   listen ff05::8 EX(s2) by 2
		3s   listen ff05::8 IN()
		4s   listen ff05::8 IN() by 2
		4s   > TO_IN(ff05::8)
		4.000000001s > TO_IN(ff05::8)
		5s   listen ff05::8 IN()
		5s   listen ff05::8 IN() by 2
	`},

	// Answers.
	{rule: "V2-32 V2-36 V2-40", name: "General Query", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		0s      listen ff05::9 EX(s1)
		0s      > TO_EX(ff05::9; s1)
		0s      listen ff05::a IN(s1,s2)
		0s      > ALLOW(ff05::a; s1,s2)
		0s      listen ff02::1 EX()
		10s     query2 :: 10s qrv 1
		19.995s > IS_EX(ff05::8) IS_EX(ff05::9; s1) IS_IN(ff05::a; s1,s2)
		1h      wait
	`},
	{rule: "V2-32", name: "an answer is never given at once", cfg: listener.Config{Robustness: 1}, transcript: `
		0s    source fe80::a
		0s    listen ff05::8 EX()
		0s    > TO_EX(ff05::8)
		0s    draw 0/1
		10s   query2 :: 10s qrv 1
		10.000000001s > IS_EX(ff05::8)
		20s   query2 ff05::8 10s qrv 1
		20.000000001s > IS_EX(ff05::8)
	`},
	{rule: "V2-32", name: "without a delay: at the next timer step", cfg: listener.Config{Robustness: 1}, transcript: `
		0s    source fe80::a
		0s    listen ff05::8 EX()
		0s    > TO_EX(ff05::8)
		10s   query2 :: 0s qrv 1
		10.000000001s > IS_EX(ff05::8)
		20s   query2 ff05::8 0s qrv 1
		20.000000001s > IS_EX(ff05::8)
		30s   query2 ff05::8 1ms qrv 1
		30.00075s > IS_EX(ff05::8)
	`},
	{rule: "V2-11 V2-32", name: "the delay is decoded", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		1s      query2 :: 0s code 0x7fff qrv 1
		33.762s > IS_EX(ff05::8)
		100s    query2 :: 0s code 0x9c40 qrv 1
		215.707s > IS_EX(ff05::8)
		1000s   query2 :: 0s code 0xffff qrv 1
		9387.579s > IS_EX(ff05::8)
	`},
	{rule: "V2-33 V2-34", name: "no state, no timer", transcript: `
		0s      source fe80::a
		0s      listen ff02::1 EX()
		0s      query2 :: 10s
		0s      query2 ff05::8 10s
		0s      query2 ff05::8 10s sources s1
		1s      listen ff05::8 EX()
		1s      > TO_EX(ff05::8)
		2s      > TO_EX(ff05::8)
		20s     listen ff05::8 IN()
		20s     > TO_IN(ff05::8)
		20.5s   query2 :: 10s
		20.5s   query2 ff05::8 10s
		20.6s   listen ff05::8 EX()
		20.6s   > TO_EX(ff05::8)
		21.6s   > TO_EX(ff05::8)
		1h      wait
	`},
	{rule: "V2-35", name: "rule 1: an earlier general answer is good for any Query", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1)
		0s      > ALLOW(ff05::8; s1)
		10s     query2 :: 5s qrv 1
		11s     query2 :: 10s qrv 1
		11s     query2 ff05::8 10s qrv 1
		11s     query2 ff05::8 10s sources s1 qrv 1
		14.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "V2-35 V2-37", name: "rule 1: an answer at the same time is not earlier", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1,s2)
		0s      > ALLOW(ff05::8; s1,s2)
		10s     query2 :: 5s qrv 1
		10s     query2 ff05::8 5s sources s1 qrv 1
		14.995s > IS_IN(ff05::8; s1) IS_IN(ff05::8; s1,s2)
		1h      wait
	`},
	{rule: "V2-35 V2-36", name: "rule 2: a general answer that is not sooner is replaced", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1)
		0s      > ALLOW(ff05::8; s1)
		10s     query2 :: 10s qrv 1
		10s     query2 :: 10s qrv 1
		12s     query2 :: 3s qrv 1
		14.995s > IS_IN(ff05::8; s1)
		1h      wait
	`},
	{rule: "V2-37", name: "rule 3: specific Queries, beside a later general answer", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1,s2,s3)
		0s      > ALLOW(ff05::8; s1,s2,s3)
		10s     query2 ff05::8 1s qrv 1
		10.995s > IS_IN(ff05::8; s1,s2,s3)
		20s     query2 ff05::8 1s sources s2,s1,s9 qrv 1
		20.995s > IS_IN(ff05::8; s1,s2)
		30s     query2 :: 10s qrv 1
		31s     query2 ff05::8 1s sources s3 qrv 1
		31.995s > IS_IN(ff05::8; s3)
		39.995s > IS_IN(ff05::8; s1,s2,s3)
		40s     query2 ff05::8 1s qrv 1
		40s     query2 :: 10s qrv 1
		40.995s > IS_IN(ff05::8; s1,s2,s3)
		49.995s > IS_IN(ff05::8; s1,s2,s3)
	`},
	{rule: "V2-38", name: "rule 4: the whole record, at the earlier time", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1,s2)
		0s      > ALLOW(ff05::8; s1,s2)
		10s     query2 ff05::8 2s sources s1 qrv 1
		10.5s   query2 ff05::8 3s qrv 1
		11.995s > IS_IN(ff05::8; s1,s2)
		20s     query2 ff05::8 3s sources s1 qrv 1
		20.5s   query2 ff05::8 1s qrv 1
		21.495s > IS_IN(ff05::8; s1,s2)
		30s     query2 ff05::8 2s qrv 1
		30.5s   query2 ff05::8 3s sources s1 qrv 1
		31.995s > IS_IN(ff05::8; s1,s2)
		40s     query2 ff05::8 3s qrv 1
		40.5s   query2 ff05::8 1s sources s1 qrv 1
		41.495s > IS_IN(ff05::8; s1,s2)
		50s     query2 ff05::8 3s sources s1 qrv 1
		50.2s   query2 ff05::8 3s qrv 1
		50.4s   query2 ff05::8 3s sources s1 qrv 1
		52.995s > IS_IN(ff05::8; s1,s2)
	`},
	{rule: "V2-39", name: "rule 5: the union of the sources, at the earlier time", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1,s2,s3)
		0s      > ALLOW(ff05::8; s1,s2,s3)
		10s     query2 ff05::8 2s sources s1 qrv 1
		10.5s   query2 ff05::8 3s sources s2,s1 qrv 1
		11.995s > IS_IN(ff05::8; s1,s2)
		20s     query2 ff05::8 3s sources s3 qrv 1
		20.5s   query2 ff05::8 1s sources s1 qrv 1
		21.495s > IS_IN(ff05::8; s1,s3)
	`},
	{rule: "V2-34 V2-39", name: "sources that nobody wants are not waited for", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1)
		0s      > ALLOW(ff05::8; s1)
		0s      listen ff05::9 EX(s1)
		0s      > TO_EX(ff05::9; s1)
		10s     query2 ff05::8 2s sources s2,s3 qrv 1
		10s     query2 ff05::9 2s sources s1 qrv 1
		11s     listen ff05::8 IN(s1,s2)
		11s     > ALLOW(ff05::8; s2)
		11s     listen ff05::9 EX()
		11s     > ALLOW(ff05::9; s1)
		1h      wait
	`},
	{rule: "V2-41", name: "no answer for what is no longer listened to", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		10s     query2 ff05::8 10s qrv 1
		11s     listen ff05::8 IN()
		11s     > TO_IN(ff05::8)
		20s     listen ff05::8 EX()
		20s     > TO_EX(ff05::8)
		30s     query2 ff05::8 10s sources s1 qrv 1
		31s     listen ff05::8 IN()
		31s     > TO_IN(ff05::8)
		1h      wait
	`},
	{rule: "V2-42", name: "a record for the sources asked for, as things stand when it leaves", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX(s1)
		0s      > TO_EX(ff05::8; s1)
		10s     query2 ff05::8 1s sources s1,s2,s3 qrv 1
		10.995s > IS_IN(ff05::8; s2,s3)
		20s     query2 ff05::8 2s sources s1,s2,s3 qrv 1
		21s     listen ff05::8 EX(s2)
		21s     > ALLOW(ff05::8; s1) BLOCK(ff05::8; s2)
		21.995s > IS_IN(ff05::8; s1,s3)
		30s     query2 ff05::8 2s sources s1,s2,s3 qrv 1
		31s     listen ff05::8 IN(s3,s4)
		31s     > TO_IN(ff05::8; s3,s4)
		31.995s > IS_IN(ff05::8; s3)
		40s     query2 ff05::8 2s sources s3 qrv 1
		41s     listen ff05::8 IN(s4)
		41s     > BLOCK(ff05::8; s3)
		1h      wait
	`},
	{rule: "V2-43 V2-42", name: "an empty IS_IN is not sent", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX(s1)
		0s      > TO_EX(ff05::8; s1)
		10s     query2 ff05::8 2s sources s2 qrv 1
		11s     listen ff05::8 EX(s1,s2)
		11s     > BLOCK(ff05::8; s2)
		20s     query2 :: 1s qrv 1
		20.5s   listen ff05::8 IN()
		20.5s   > TO_IN(ff05::8)
		1h      wait
	`},
	{rule: "V2-44", name: "the sources are forgotten with the answer, also with an empty one", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1,s2)
		0s      > ALLOW(ff05::8; s1,s2)
		10s     query2 ff05::8 1s sources s1 qrv 1
		10.995s > IS_IN(ff05::8; s1)
		11s     query2 ff05::8 1s sources s2 qrv 1
		11.995s > IS_IN(ff05::8; s2)
		20s     query2 ff05::8 1s sources s1 qrv 1
		20.5s   listen ff05::8 IN(s2)
		20.5s   > BLOCK(ff05::8; s1)
		21s     listen ff05::8 IN(s1,s2)
		21s     > ALLOW(ff05::8; s1)
		22s     query2 ff05::8 1s sources s2 qrv 1
		22.995s > IS_IN(ff05::8; s2)
	`},
	{rule: "V2-44", name: "a general answer does not settle a specific one", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1,s2)
		0s      > ALLOW(ff05::8; s1,s2)
		10s     query2 ff05::8 3s sources s1 qrv 1
		10s     query2 :: 1s qrv 1
		10.995s > IS_IN(ff05::8; s1,s2)
		12.995s > IS_IN(ff05::8; s1)
	`},
	{rule: "V2-45", name: "changes and answers do not meet", transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		0s      listen ff05::9 EX()
		0s      > TO_EX(ff05::9)
		0.5s    query2 :: 2s
		0.5s    query2 ff05::8 1s
		1s      > TO_EX(ff05::8) TO_EX(ff05::9)
		1.4s    listen ff05::8 IN()
		1.4s    > TO_IN(ff05::8)
		2.4s    > TO_IN(ff05::8)
		2.495s  > IS_EX(ff05::9)
		1h      wait
	`},
	{rule: "V2-73", name: "a flood of sources has the whole record as its answer", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 IN(s1,s5000)
		0s      > ALLOW(ff05::8; s1,s5000)
		10s     query2 ff05::8 1s sources s1-s1024 qrv 1
		10.995s > IS_IN(ff05::8; s1)
		20s     query2 ff05::8 1s sources s1-s1000 qrv 1
		20s     query2 ff05::8 1s sources s1001-s1024,s5000 qrv 1
		20.995s > IS_IN(ff05::8; s1,s5000)
		30s     query2 ff05::8 1s sources s1-s1025 qrv 1
		30.995s > IS_IN(ff05::8; s1,s5000)
		40s     query2 ff05::8 1s sources s1 qrv 1
		40.995s > IS_IN(ff05::8; s1)
	`},

	// What the querier says.
	{rule: "V2-13 V2-83", name: "the querier's robustness is taken over, none is the configured one", cfg: listener.Config{Robustness: 3}, transcript: `
		0s    source fe80::a
		0s    query2 :: 1s qrv 1
		1s    listen ff05::8 EX()
		1s    > TO_EX(ff05::8)
		2s    listen ff05::8 IN()
		2s    > TO_IN(ff05::8)
		3s    query2 ff05::9 1s qrv 2
		4s    listen ff05::8 EX()
		4s    > TO_EX(ff05::8)
		5s    > TO_EX(ff05::8)
		6s    query2 ff05::9 1s sources s1 qrv 0
		7s    listen ff05::8 IN()
		7s    > TO_IN(ff05::8)
		8s    > TO_IN(ff05::8)
		9s    > TO_IN(ff05::8)
		1h    wait
	`},
	{rule: "V2-13", name: "a robustness that changes in the midst of a series concerns the next one", transcript: `
		0s    source fe80::a
		0s    query2 :: 1s qrv 7
		0s    listen ff05::8 EX()
		0s    > TO_EX(ff05::8)
		0.5s  query2 ff05::9 1s qrv 1
		1s    > TO_EX(ff05::8)
		2s    > TO_EX(ff05::8)
		3s    > TO_EX(ff05::8)
		4s    > TO_EX(ff05::8)
		5s    > TO_EX(ff05::8)
		6s    > TO_EX(ff05::8)
		1h    wait
	`},
	{rule: "V2-12", name: "the S flag means nothing", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		10s     query2 ff05::8 1s qrv 1 s -
		10.995s > IS_EX(ff05::8)
	`},
	{rule: "V2-15 V2-55", name: "other messages mean nothing, another's Report suppresses nothing", transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		0.1s    query2 :: 3s
		0.1s    query2 ff05::8 2s
		0.5s    report ff05::8
		0.5s    done ff05::8
		0.5s    reportv2
		1s      > TO_EX(ff05::8)
		1.5s    report ff05::8
		2.095s  > IS_EX(ff05::8)
		3s      report ff05::8
		3.095s  > IS_EX(ff05::8)
		4s      listen ff05::8 IN()
		4s      > TO_IN(ff05::8)
		5s      > TO_IN(ff05::8)
	`},

	// Sending.
	{rule: "V2-1 V2-60 V2-61 V2-82", name: `from "::" first, all anew from the link-local address`, transcript: `
		0s    source ::
		0s    listen ff02::1:ff00:a EX()
		0s    > TO_EX(ff02::1:ff00:a) from ::
		0s    listen ff05::8 IN(s1,s2)
		0s    > ALLOW(ff05::8; s1,s2) from ::
		0s    ? ff05::8
		0s    = ff05::8 IN(s1,s2) Delaying due 1s
		1s    > TO_EX(ff02::1:ff00:a) ALLOW(ff05::8; s1,s2) from ::
		2s    source fe80::a
		2s    > TO_EX(ff02::1:ff00:a) ALLOW(ff05::8; s1,s2)
		3s    > TO_EX(ff02::1:ff00:a) ALLOW(ff05::8; s1,s2)
		1h    wait
	`},
	{rule: "V2-61", name: "the link-local address comes in the midst of a series", cfg: listener.Config{Robustness: 3}, transcript: `
		0s    source ::
		0s    listen ff05::8 EX(s1)
		0s    > TO_EX(ff05::8; s1) from ::
		0.5s  source fe80::a
		0.5s  > TO_EX(ff05::8; s1)
		1.5s  > TO_EX(ff05::8; s1)
		2.5s  > TO_EX(ff05::8; s1)
		10s   source fe80::a
		10s   source ::
		11s   listen ff05::8 IN()
		11s   > TO_IN(ff05::8) from ::
		12s   > TO_IN(ff05::8) from ::
		12.5s source fe80::c
		13s   > TO_IN(ff05::8) from fe80::c
		1h    wait
	`},
	{rule: "V2-61", name: "nothing can be sent: all is told when it can", transcript: `
		0s    listen ff05::8 EX()
		0s    listen ff05::9 EX()
		0s    query2 :: 1s
		5s    listen ff05::9 IN()
		5s    ? ff05::9
		5s    = ff05::9 Non-Listener
		6s    source fe80::a
		6s    > TO_EX(ff05::8)
		6.2s  listen ff05::9 EX()
		6.2s  > TO_EX(ff05::9)
		6.5s  source none
		6.6s  listen ff05::9 EX(s1)
		7s    wait
		10s   source fe80::a
		10s   > TO_EX(ff05::8) TO_EX(ff05::9; s1)
		10.5s listen ff05::9 IN()
		10.5s > TO_IN(ff05::9)
		10.6s source none
		1h    wait
	`},

	// Version 1.
	{rule: "V2-49 V2-50 V2-52 V2-54 V2-66 V2-67", name: "version 1 and back", transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		0s      listen ff05::9 IN(s1)
		0s      > ALLOW(ff05::9; s1)
		1s      > TO_EX(ff05::8) ALLOW(ff05::9; s1)
		10s     ? version
		10s     = version 2
		10s     query :: 10s
		10s     ? version
		10s     = version 1
		10s     ? ff05::8
		10s     = ff05::8 Delaying due 19.995s last
		19.995s > Report ff05::8 answer
		19.995s > Report ff05::9 answer
		20s     listen ff05::a EX(s1)
		20s     > Report ff05::a joined
		21s     listen ff05::9 IN(s1,s2)
		30s     > Report ff05::a repeat
		40s     query2 :: 1s
		40.995s > Report ff05::8 answer
		40.995s > Report ff05::9 answer
		40.995s > Report ff05::a answer
		50s     query2 ff05::9 1s sources s7
		50.995s > Report ff05::9 answer
		60s     listen ff05::9 IN()
		60s     > Done ff05::9
		269.999s ? version
		269.999s = version 1
		270s    ? version
		270s    = version 2
		271s    listen ff05::8 EX(s1)
		271s    > BLOCK(ff05::8; s1)
		272s    > BLOCK(ff05::8; s1)
		280s    query2 :: 1s
		280.995s > IS_EX(ff05::8; s1) IS_EX(ff05::a; s1)
	`},
	{rule: "V2-49", name: "each version 1 Query, also a specific one, puts the return off", transcript: `
		0s      source fe80::a
		0s      query ff05::8 1s
		0s      ? version
		0s      = version 1
		100s    query ff05::8 1s
		359.9s  ? version
		359.9s  = version 1
		361s    ? version
		361s    = version 2
	`},
	{rule: "V2-51 V2-52", name: "in version 1 mode the delay is linear, in any Query", transcript: `
		0s      source fe80::a
		0s      draw 0/1
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		1ns     > TO_EX(ff05::8)
		1s      draw 1/1
		1s      query :: 40s
		40.995s > Report ff05::8 answer
		50s     query2 :: 0s code 0x9c40
		89.995s > Report ff05::8 answer
		100s    query2 :: 0s
		100s    > Report ff05::8 answer
	`},
	{rule: "V2-52", name: "a version 2 Query does not put the return off", transcript: `
		0s      source fe80::a
		0s      query :: 10s
		200s    query2 :: 10s
		260s    ? version
		260s    = version 2
	`},
	{rule: "V2-53", name: "the change of mode cancels answers and repeats, and the Query that made it is answered", transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		0s      query2 :: 10s
		0s      query2 ff05::8 5s
		0.5s    query :: 2s
		2.495s  > Report ff05::8 answer
		1h      wait
	`},
	{rule: "V2-53", name: "a version 1 Query about another address cancels all the same", transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		0s      query2 :: 10s
		0s      query2 ff05::8 5s
		0.5s    query ff05::9 2s
		1h      wait
	`},
	{rule: "V2-53", name: "in version 1 mode a further version 1 Query cancels nothing", transcript: `
		0s      source fe80::a
		0s      query :: 1s
		1s      listen ff05::8 EX()
		1s      > Report ff05::8 joined
		2s      query ff05::9 1s
		11s     > Report ff05::8 repeat
	`},
	{rule: "V2-53 V2-67", name: "the return cancels what is pending, too", cfg: listener.Config{UnsolicitedReportInterval: time.Hour}, transcript: `
		0s      source fe80::a
		0s      query :: 10s
		0s      listen ff05::8 EX()
		0s      > Report ff05::8 joined
		259s    query2 :: 10s
		2h      wait
	`},
	{rule: "V2-53 V2-63", name: "a leave that is cut off gets a Done", transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		0s      listen ff05::9 IN(s1)
		0s      > ALLOW(ff05::9; s1)
		0.1s    listen ff05::8 IN()
		0.1s    > TO_IN(ff05::8)
		0.1s    listen ff05::9 IN()
		0.1s    > BLOCK(ff05::9; s1)
		0.1s    listen ff05::a EX()
		0.1s    > TO_EX(ff05::a)
		0.5s    query :: 1s
		0.5s    > Done ff05::8
		0.5s    > Done ff05::9
		1.495s  > Report ff05::a answer
		2s      listen ff05::8 EX()
		2s      > Report ff05::8 joined
		12s     > Report ff05::8 repeat
	`},
	{rule: "V2-50", name: "the version 1 interval for version 1's repeats", cfg: listener.Config{UnsolicitedReportInterval: 3 * time.Second}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		3s      > TO_EX(ff05::8)
		4s      query ff05::9 1s
		5s      listen ff05::9 EX()
		5s      > Report ff05::9 joined
		8s      > Report ff05::9 repeat
	`},
	{rule: "V2-55 V2-50", name: "in version 1 mode another's Report suppresses, but not for an SSM address", transcript: `
		0s      source fe80::a
		0s      query ff05::7 1s
		0s      listen ff05::8 EX()
		0s      > Report ff05::8 joined
		0s      listen ff3e::8000:1 IN(s1)
		0s      > Report ff3e::8000:1 joined
		1s      report ff05::8
		1s      report ff3e::8000:1
		10s     > Report ff3e::8000:1 repeat
		11s     query :: 1s
		11.5s   report ff3e::8000:1
		11.995s > Report ff05::8 answer
		11.995s > Report ff3e::8000:1 answer
	`},
	{rule: "V2-66", name: "after the change to version 1 a leave says Done, whoever reported before", transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		0.5s    report ff05::8
		1s      > TO_EX(ff05::8)
		2s      query ff05::9 1s
		2s      ? ff05::8
		2s      = ff05::8 Idle last
		2s      report ff05::8
		3s      listen ff05::8 IN()
		3s      > Done ff05::8
	`},
	{rule: "V2-56", name: "no fallback", cfg: listener.Config{Version: mld.Version2}, transcript: `
		0s      source fe80::a
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		0.5s    query :: 0s
		0.5s    query ff05::8 0s
		0.5s    ? version
		0.5s    = version 2
		1s      > TO_EX(ff05::8)
		2s      query2 :: 1s
		2.995s  > IS_EX(ff05::8)
	`},
	{rule: "V2-68 V2-14", name: "how long version 1 lasts: the last robustness, interval and delay", transcript: `
		0s      source fe80::a
		0s      query2 :: 20s qrv 3 qqic 40s
		1s      query ff05::9 1s
		140.9s  ? version
		140.9s  = version 1
		141s    ? version
		141s    = version 2
		142s    query2 ff05::9 1s qrv 0 qqic 0s
		150s    query ff05::9 1s
		419.9s  ? version
		419.9s  = version 1
		420s    ? version
		420s    = version 2
		421s    query :: 40s
		710.9s  ? version
		710.9s  = version 1
		711s    ? version
		711s    = version 2
	`},
	{rule: "V2-54 V2-53", name: "a Query that comes with the end of version 1 is answered in version 2", transcript: `
		0s      source fe80::a
		0s      query ff05::9 1s
		1s      listen ff05::8 EX()
		1s      > Report ff05::8 joined
		11s     > Report ff05::8 repeat
		260s    query2 :: 1s
		260.995s > IS_EX(ff05::8)
	`},

	// SSM.
	{rule: "V2-58 V2-75", name: "an SSM address without sources is refused", transcript: `
		0s      source fe80::a
		0s      listen ff3e::8000:1 EX()
		0s      = listener: ff3e::8000:1: the address is for source-specific multicast: name the sources to include
		0s      listen ff35::4000:1 EX(s1)
		0s      = listener: ff35::4000:1: the address is for source-specific multicast: name the sources to include
		0s      listen ff3e::8000:1 IN()
		0s      ? ff3e::8000:1
		0s      = ff3e::8000:1 Non-Listener
		1s      listen ff3e::8000:1 IN(s1)
		1s      > ALLOW(ff3e::8000:1; s1)
		2s      > ALLOW(ff3e::8000:1; s1)
		3s      listen ff3e::8000:1 EX()
		3s      = listener: ff3e::8000:1: the address is for source-specific multicast: name the sources to include
		3s      ? ff3e::8000:1
		3s      = ff3e::8000:1 IN(s1) Idle
		4s      listen ff3e:40::1 EX()
		4s      > TO_EX(ff3e:40::1)
		5s      > TO_EX(ff3e:40::1)
	`},
	{rule: "V2-76 V2-78 V2-58", name: "the records of an SSM address", cfg: listener.Config{Robustness: 1}, transcript: `
		0s      source fe80::a
		0s      listen ff3e::8000:1 IN(s1,s2)
		0s      > ALLOW(ff3e::8000:1; s1,s2)
		0s      listen ff05::8 EX()
		0s      > TO_EX(ff05::8)
		1s      listen ff3e::8000:1 IN(s2,s3)
		1s      > ALLOW(ff3e::8000:1; s3) BLOCK(ff3e::8000:1; s1)
		2s      query2 :: 1s qrv 1
		2.995s  > IS_EX(ff05::8) IS_IN(ff3e::8000:1; s2,s3)
		4s      query2 ff3e::8000:1 1s qrv 1
		4.995s  > IS_IN(ff3e::8000:1; s2,s3)
		6s      query2 ff3e::8000:1 1s sources s3,s4 qrv 1
		6.995s  > IS_IN(ff3e::8000:1; s3)
		8s      listen ff3e::8000:1 IN()
		8s      > BLOCK(ff3e::8000:1; s2,s3)
	`},
	{rule: "V2-77 V2-79", name: "an SSM address in version 1 mode", transcript: `
		0s      source fe80::a
		0s      draw 0/1
		0s      listen ff3e::8000:1 IN(s1)
		0s      > ALLOW(ff3e::8000:1; s1)
		1ns     > ALLOW(ff3e::8000:1; s1)
		1s      draw 1/1
		1s      query ff3e::8000:1 1s
		1.995s  > Report ff3e::8000:1 answer
		3s      query :: 1s
		3.995s  > Report ff3e::8000:1 answer
		4s      listen ff3e::8000:1 IN(s1,s2)
		5s      listen ff3e::8000:1 IN()
		5s      > Done ff3e::8000:1
	`},
	{rule: "V2-58", name: "a membership that the kernel holds is reported as the kernel would", transcript: `
		0s      source fe80::a
		0s      mirror ff3e::8000:1 EX()
		0s      > TO_EX(ff3e::8000:1)
		1s      > TO_EX(ff3e::8000:1)
	`},
}

func TestV2(t *testing.T) {
	for _, s := range v2Scenarios {
		t.Run(s.rule+" "+s.name, func(t *testing.T) { scenario(t, s.cfg, s.transcript) })
	}
}

// The first two are octets that Linux 6.18 sent in the same situations.
func TestV2_01_V2_02_V2_03_V2_04_Octets(t *testing.T) {
	n := newNode(t, listener.Config{Robustness: 1}, &share{1, 1})
	for _, step := range []string{
		"source ::", "listen ff02::1:ff00:a EX()", "forget ff02::1:ff00:a",
		"source fe80::ff:fe00:a", "listen ff3e::8000:1 IN(2001:db8::11,2001:db8::10)",
		"listen ff05::4321 EX()", "listen ff05::4321 IN(s1,s2)",
	} {
		f := strings.Fields(step)
		n.do(0, f[0], f[1:])
	}
	const (
		from = "fe80000000000000000000fffe00000a"
		to   = "ff020000000000000000000000000016" + "3a00050200000100"
	)
	want := []string{
		"6000000000240001" + "00000000000000000000000000000000" + to + "8f006f8000000001" +
			"04000000ff0200000000000000000001ff00000a",
		"6000000000440001" + from + to + "8f00940e00000001" + "05000002ff3e0000000000000000000080000001" +
			"20010db8000000000000000000000010" + "20010db8000000000000000000000011",
		"6000000000240001" + from + to + "8f002ddd00000001" + "04000000ff050000000000000000000000004321",
		"6000000000440001" + from + to + "8f00d34500000001" + "03000002ff050000000000000000000000004321" +
			"20010db8000000000000000000000001" + "20010db8000000000000000000000002",
	}
	var got []string
	for _, p := range n.packets {
		got = append(got, hex.EncodeToString(p))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("octets sent (-want +got):\n%s", diff)
	}
}

// Two interfaces share nothing: not the filters, not the answers, not the mode.
func TestV2_19_V2_57_TwoInterfaces(t *testing.T) {
	a, b := newNode(t, listener.Config{}, &share{1, 1}), newNode(t, listener.Config{}, &share{1, 1})
	for _, n := range []*node{a, b} {
		n.do(0, "source", []string{"fe80::a"})
		n.do(0, "listen", []string{"ff05::8", "EX()"})
		n.runUntil(10 * time.Second)
		n.transcript = nil
	}
	a.do(10*time.Second, "query", []string{"::", "1s"})
	b.do(10*time.Second, "query2", []string{"::", "1s"})
	a.do(10*time.Second, "listen", []string{"ff05::8", "EX(s1)"})
	a.runUntil(forever)
	b.runUntil(forever)
	if want := []string{"10.995s > Report ff05::8 answer"}; !slices.Equal(a.transcript, want) {
		t.Errorf("the interface of the version 1 querier says %q, want %q", a.transcript, want)
	}
	if want := []string{"10.995s > IS_EX(ff05::8)"}; !slices.Equal(b.transcript, want) {
		t.Errorf("the other interface says %q, want %q", b.transcript, want)
	}
}

// MLD messages are heard whatever the filters exclude, to any of the node's addresses, and the source of a Query
// does not matter to an exclude list.
func TestV2_06_V2_70_V2_81_AnyDestinationAndSource(t *testing.T) {
	querier := netip.MustParseAddr("fe80::b")
	for _, dst := range []netip.Addr{mld.AllNodes, own, netip.MustParseAddr("2001:db8::a"), netip.MustParseAddr("ff05::8")} {
		n := newNode(t, listener.Config{Robustness: 1}, &share{1, 1})
		n.do(0, "source", []string{own.String()})
		n.do(0, "listen", []string{"ff05::8", "EX(" + querier.String() + ")"})
		n.hear(0, mld.AppendQuery(nil, querier, dst, mld.Query{Version: mld.Version2, MaxResponseCode: 1000, QRV: 1}))
		n.runUntil(forever)
		want := []string{"0s > TO_EX(ff05::8; fe80::b)", "995ms > IS_EX(ff05::8; fe80::b)"}
		if !slices.Equal(n.transcript, want) {
			t.Errorf("a Query to %v: %q, want %q", dst, n.transcript, want)
		}
	}
}

// An error is for the caller to see; nothing has changed then.
func TestV2_72_V2_74_V2_75_ListenRefuses(t *testing.T) {
	mine := func(a netip.Addr) bool { return a == netip.MustParseAddr("ff05::77") }
	for _, tt := range []struct {
		cfg    listener.Config
		addr   string
		filter string
		ssm    bool   // the error is ErrSourceSpecific
		want   string // in the error; "" if there is none
	}{
		{addr: "ff3e::8000:1", filter: "EX()", ssm: true, want: "ff3e::8000:1"},
		{addr: "ff32::1", filter: "EX(s1)", ssm: true, want: "ff32::1"},
		{addr: "ff3f::ffff:ffff", filter: "EX()", ssm: true, want: "ff3f::ffff:ffff"},
		{addr: "ff3e:0:0:1::1", filter: "EX()", ssm: true, want: "ff3e:0:0:1::1"}, // ff3x::/32 whatever follows
		{addr: "ff3e:0:1::1", filter: "EX()", ssm: true, want: "ff3e:0:1::1"},
		{addr: "ff3e:40::1", filter: "EX()"},
		{addr: "ff3e:1::1", filter: "EX()"},
		{addr: "ff2e::1", filter: "EX()"},
		{addr: "ff7e::1", filter: "EX()"},
		{addr: "ff3e::8000:1", filter: "IN(s1)"},
		{addr: "ff3e::8000:1", filter: "IN()"},
		{cfg: listener.Config{SourceSpecific: mine}, addr: "ff05::77", filter: "EX()", ssm: true, want: "ff05::77"},
		{cfg: listener.Config{SourceSpecific: mine}, addr: "ff05::77", filter: "IN(s1)"},
		{cfg: listener.Config{SourceSpecific: mine}, addr: "ff3e::8000:1", filter: "EX()"},
		{addr: "ff05::8", filter: "IN(ff05::9)", want: "ff05::9"},
		{addr: "ff05::8", filter: "IN(s1,::)", want: "source ::"},
		{addr: "ff05::8", filter: "EX(192.0.2.1)", want: "192.0.2.1"},
		{addr: "ff05::8", filter: "IN(::ffff:192.0.2.1)", want: "::ffff:192.0.2.1"},
		{addr: "ff05::8", filter: "IN(fe80::1%eth0)", want: "fe80::1%eth0"},
	} {
		n := newNode(t, tt.cfg, &share{1, 1})
		n.l.SetSource(epoch, own)
		err := n.l.Listen(epoch, 1, netip.MustParseAddr(tt.addr), filter(t, tt.filter))
		switch {
		case (err == nil) != (tt.want == "") || errors.Is(err, listener.ErrSourceSpecific) != tt.ssm:
			t.Errorf("%s %s: error is %v", tt.addr, tt.filter, err)
		case err != nil && (!strings.HasPrefix(err.Error(), "listener: ") || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s %s: error %q does not tell of %q", tt.addr, tt.filter, err, tt.want)
		}
		n.drain()
		if _, waits := n.l.NextDeadline(); err != nil && (len(n.packets) > 0 || waits || n.l.Slots() > 0) {
			t.Errorf("%s %s: refused, but %d packets were sent, %d addresses are there", tt.addr, tt.filter, len(n.packets), n.l.Slots())
		}
	}
}

// The counter is what a program logs the error by.
func TestV2_59_V2_79_SourceSpecificQueriesOfVersion1(t *testing.T) {
	for _, tt := range []struct {
		steps string
		want  uint64
	}{
		{"query :: 1s", 0}, // nobody listens to an SSM address
		{"query ff3e::8000:1 1s", 0},
		{"listen ff05::8 EX() | query :: 1s", 0},
		{"listen ff3e::8000:1 IN(s1) | query :: 1s", 1},
		{"listen ff3e::8000:1 IN(s1) | query ff3e::8000:1 1s", 1},
		{"listen ff3e::8000:1 IN(s1) | query ff05::8 1s", 0},
		{"listen ff3e::8000:1 IN(s1) | query2 :: 1s", 0},
		{"listen ff3e::8000:1 IN(s1) | listen ff3e::8000:1 IN(s2) | listen ff3e::8000:1 IN() | query :: 1s", 0},
		{"listen ff3e::8000:1 IN(s1) | forget ff3e::8000:1 | query :: 1s", 0},
		{"listen ff3e::8000:1 IN(s1) | listen ff3e::8000:1 IN(s1) by 2 | listen ff3e::8000:1 IN() | query :: 1s | query :: 1s", 2},
	} {
		n := newNode(t, listener.Config{}, &share{1, 1})
		for step := range strings.SplitSeq(tt.steps, "|") {
			f := strings.Fields(step)
			n.do(0, f[0], f[1:])
		}
		if got := n.l.Counters().SourceSpecificQueriesV1; got != tt.want {
			t.Errorf("%s: %d, want %d", tt.steps, got, tt.want)
		}
	}
}

// A pending leave goes on when somebody else is forgotten, who was not there; the last one to be forgotten leaves
// without a word, and takes what was being told along.
func TestForget(t *testing.T) {
	n := newNode(t, listener.Config{Robustness: 3}, &share{1, 1})
	for _, step := range []string{
		"source fe80::a", "listen ff05::8 EX()", "listen ff05::8 IN()", "forget ff05::8 by 2", "forget ff05::8", // a leave
		"listen ff05::9 EX()", "forget ff05::9", // nobody is told
		"listen ff05::a EX()", "listen ff05::a EX(s1) by 2", "forget ff05::a by 1", // s1 is told
	} {
		f := strings.Fields(step)
		n.do(0, f[0], f[1:])
	}
	n.runUntil(forever)
	want := []string{
		"0s > TO_EX(ff05::8)", "0s > TO_IN(ff05::8)", "0s > TO_EX(ff05::9)", "0s > TO_EX(ff05::a)", "0s > TO_EX(ff05::a; s1)",
		"1s > TO_IN(ff05::8) TO_EX(ff05::a; s1)", "2s > TO_IN(ff05::8) BLOCK(ff05::a; s1)",
	}
	if diff := cmp.Diff(want, n.transcript); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n.l.Slots() != 1 {
		t.Errorf("%d addresses are there, want 1", n.l.Slots())
	}
}

// Leave is a leave of all.
func TestLeave(t *testing.T) {
	for _, v := range []mld.Version{mld.Version1, mld.Version2} {
		n := newNode(t, listener.Config{Version: v, Robustness: 1}, &share{1, 1})
		n.do(0, "source", []string{"fe80::a"})
		n.do(0, "listen", []string{"ff05::8", "EX(s1)"})
		n.do(0, "listen", []string{"ff05::8", "IN(s1)", "by", "2"})
		n.do(0, "listen", []string{"ff05::8", "EX()", "by", "3"})
		n.transcript = nil
		for range 2 {
			n.l.Leave(epoch, netip.MustParseAddr("ff05::8"))
			n.drain()
		}
		want := map[mld.Version]string{1: "0s > Done ff05::8", 2: "0s > TO_IN(ff05::8)"}[v]
		if !slices.Equal(n.transcript, []string{want}) || n.l.Slots() != 0 {
			t.Errorf("version %d: %q and %d addresses, want %q and none", v, n.transcript, n.l.Slots(), want)
		}
	}
}

// What cannot be sent is not counted, does not make an address reported, and leaves nothing behind.
func TestV2_NothingCanBeSent(t *testing.T) {
	n := newNode(t, listener.Config{}, &share{1, 1})
	group := netip.MustParseAddr("ff05::8")
	n.do(0, "source", []string{"fe80::a"})
	n.do(0, "listen", []string{"ff05::8", "EX()"})
	n.do(0, "listen", []string{"ff05::9", "EX()"})
	n.do(0, "listen", []string{"ff05::9", "IN()"})
	n.do(0, "query2", []string{"::", "500ms"})
	sent := n.l.Counters()
	n.do(0, "source", []string{"none"})
	n.runUntil(forever)
	if got := n.l.Counters(); got != sent {
		t.Errorf("without a source address the counters went from %+v to %+v", sent, got)
	}
	if n.l.Slots() != 1 {
		t.Errorf("%d addresses are there, want 1: the leave has ended", n.l.Slots())
	}

	n = newNode(t, listener.Config{}, &share{1, 1})
	n.l.SetSource(epoch, own)
	if err := n.l.Listen(epoch, 1, group, listener.AnySource); err != nil {
		t.Fatal(err)
	}
	n.l.SetSource(epoch, netip.Addr{}) // before the Report was taken
	n.drain()
	if a, _ := n.l.Address(group); a.Reported || len(n.packets) != 0 || n.l.Counters().ReportsSent != 0 {
		t.Errorf("without a source address %d packets were handed out, and %+v", len(n.packets), a)
	}
}

// Reported is about what routers have heard since the first subscriber came.
func TestV2_Reported(t *testing.T) {
	n := newNode(t, listener.Config{}, &share{1, 1})
	reported := func(want bool) {
		t.Helper()
		if a, ok := n.l.Address(netip.MustParseAddr("ff05::8")); !ok || a.Reported != want {
			t.Errorf("reported is %v, want %v", a.Reported, want)
		}
	}
	listen := func(f string) {
		t.Helper()
		if err := n.l.Listen(epoch, 1, netip.MustParseAddr("ff05::8"), filter(t, f)); err != nil {
			t.Fatal(err)
		}
	}
	n.do(0, "source", []string{"::"})
	n.do(0, "listen", []string{"ff05::8", "IN(s1)"})
	reported(false)
	n.l.SetSource(epoch, own)
	reported(false)
	n.drain()
	reported(true)
	n.do(0, "listen", []string{"ff05::8", "IN()"})
	listen("IN(s1)") // the leave is still being told
	reported(false)
	n.drain()
	reported(true)
	listen("IN()")
	n.drain()
	n.runUntil(forever)
	n.do(n.now, "source", []string{"::"})
	n.do(n.now, "listen", []string{"ff05::8", "EX()"})
	n.do(n.now, "listen", []string{"ff05::8", "IN(s1)"})
	reported(false)

	n = newNode(t, listener.Config{}, &share{1, 1})
	n.do(0, "source", []string{"::"})
	n.do(0, "listen", []string{"ff05::7", "EX()"})
	n.do(0, "listen", []string{"ff05::8", "EX()"})
	n.do(0, "query2", []string{"::", "1s"})
	n.runUntil(forever)
	reported(false)
}

// The caller may be slow to take packets: a leave that is cut off meanwhile gets its Done in the same go.
func TestV2_53_DoneOfALeaveNotYetTaken(t *testing.T) {
	n := newNode(t, listener.Config{Robustness: 1}, &share{1, 1})
	n.do(0, "source", []string{"fe80::a"})
	n.do(0, "listen", []string{"ff05::8", "EX()"})
	n.transcript = nil
	if err := n.l.Listen(epoch, 1, netip.MustParseAddr("ff05::8"), listener.Filter{}); err != nil {
		t.Fatal(err)
	}
	n.do(0, "query", []string{"ff05::9", "1s"})
	if want := []string{"0s > Done ff05::8"}; !slices.Equal(n.transcript, want) {
		t.Errorf("%q, want %q", n.transcript, want)
	}
}

// Nor does a caller who has taken a part of an answer get the rest of it in the other version.
func TestV2_53_RestOfAnAnswer(t *testing.T) {
	many := listener.Filter{Sources: sources(t, "s1-s300")} // which takes four packets
	for _, addresses := range []int{1, 500} {
		n := newNode(t, listener.Config{Robustness: 1}, &share{1, 1})
		n.do(0, "source", []string{"fe80::a"})
		for i := range addresses {
			f := listener.AnySource
			if i == 0 {
				f = many
			}
			if err := n.l.Listen(epoch, 1, address(i), f); err != nil {
				t.Fatal(err)
			}
		}
		n.drain()
		n.do(0, "query2", []string{"::", "1s"})
		n.l.Advance(epoch.Add(time.Second))
		for range n.l.Outgoing() {
			break
		}
		n.transcript, n.now = nil, 2*time.Second
		n.do(n.now, "query", []string{address(0).String(), "1s"})
		n.runUntil(forever)
		if want := []string{"2.995s > Report ff05:: answer"}; !slices.Equal(n.transcript, want) {
			t.Errorf("%d addresses: after the change to version 1 %q, want %q", addresses, n.transcript, want)
		}
	}
}

// An answer makes an address reported whose join was cut off before its Report was taken.
func TestV2_ReportedByAnAnswer(t *testing.T) {
	n := newNode(t, listener.Config{}, &share{1, 1})
	n.do(0, "source", []string{"fe80::a"})
	for i := range 3 {
		if err := n.l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
			t.Fatal(err)
		}
	}
	n.do(0, "query", []string{"ff0e::9", "1s"})
	n.runUntil(forever)
	for _, want := range []bool{false, true} {
		for i := range 3 {
			if a, _ := n.l.Address(address(i)); a.Reported != want {
				t.Errorf("%v: reported is %v, want %v", a.Addr, a.Reported, want)
			}
		}
		n.do(n.now, "query2", []string{"::", "1s"})
		n.runUntil(forever)
	}
}

// A caller who comes late to the end of version 1 loses no answer: what is heard after that end is heard in version
// 2, although Advance was not called yet.
func TestV2_54_LateCaller(t *testing.T) {
	n := newNode(t, listener.Config{}, &share{1, 1})
	n.do(0, "source", []string{"fe80::a"})
	n.do(0, "query", []string{"ff05::9", "1s"})
	n.do(0, "listen", []string{"ff05::8", "EX()"})
	n.runUntil(100 * time.Second)
	n.transcript = nil
	n.now = 200 * time.Second
	n.do(n.now, "query2", []string{"::", "1s"}) // within version 1
	n.runUntil(250 * time.Second)
	n.now = 300 * time.Second
	n.do(n.now, "query2", []string{"::", "1s", "qrv", "1"})
	n.do(n.now, "listen", []string{"ff05::8", "IN(s1)"})
	n.runUntil(forever)
	want := []string{"3m20.995s > Report ff05::8 answer", "5m0s > TO_IN(ff05::8; s1)", "5m0.995s > IS_IN(ff05::8; s1)"}
	if diff := cmp.Diff(want, n.transcript); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNewRefusesV2(t *testing.T) {
	for _, tt := range []struct {
		cfg  listener.Config
		want string
	}{
		{listener.Config{}, ""},
		{listener.Config{Version: mld.Version2, Robustness: 7, AlwaysDone: true}, ""},
		{listener.Config{Version: 3}, "version 3"},
		{listener.Config{Profile: listener.KAME}, "KAME"},
		{listener.Config{Profile: listener.KAME, Version: mld.Version2}, "KAME"},
	} {
		_, err := listener.New(tt.cfg, &share{1, 1})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want one about %q", tt.cfg, err, tt.want)
		}
	}
}

// The wake-ups of an MLDv2 listener: none when there is nothing to do.
func TestV2_33_NextDeadline(t *testing.T) {
	n := newNode(t, listener.Config{}, &share{1, 1})
	wait := func(want string) {
		t.Helper()
		got := "none"
		if deadline, ok := n.l.NextDeadline(); ok {
			got = deadline.Sub(epoch).String()
		}
		if got != want {
			t.Errorf("the next deadline is %s, want %s", got, want)
		}
	}
	n.do(0, "source", []string{"fe80::a"})
	n.do(0, "query2", []string{"::", "10s"})
	wait("none")
	n.do(0, "listen", []string{"ff05::8", "EX()"})
	wait("1s")
	n.do(0, "query2", []string{"ff05::8", "100ms"})
	wait("95ms")
	n.do(0, "query2", []string{"::", "50ms"})
	wait("45ms")
	n.do(0, "query", []string{"ff05::9", "1s"})
	wait("4m10.05s") // 2 × 125 s and the delay of the last General Query
	n.runUntil(forever)
	wait("none")
	if got := fmt.Sprint(listener.Include, listener.Exclude, listener.CauseChanged); got != "INCLUDE EXCLUDE changed" {
		t.Error(got)
	}
}
