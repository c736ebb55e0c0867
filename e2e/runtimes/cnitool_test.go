package runtimes

import (
	"net/netip"
	"os"
	"strings"
	"testing"
)

// cnitool knows all verbs: ADD, CHECK, STATUS, GC and DEL.
func TestCnitool(t *testing.T) {
	h := newHost(t, 1)
	h.configure(confDir, "1.1.0", spyName, map[string]any{"groups": []netip.Addr{groupA}, "robustness": 1})
	pod := h.Node("pod")
	cnitool := func(verb string) error {
		cmd := h.command("cnitool", verb, h.network, pod.Path())
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + binDir}
		out, err := cmd.CombinedOutput()
		t.Logf("cnitool %s: %v %s", verb, err, strings.TrimSpace(string(out)))
		return err
	}
	must := func(verb string) {
		t.Helper()
		if err := cnitool(verb); err != nil {
			t.Errorf("%s: %v", verb, err)
		}
	}
	id, path := "cnitool-[0-9a-f]{20}", pod.Path()

	must("status") // no daemon yet, but it could be started
	if left := processes("mldd"); len(left) > 0 {
		t.Errorf("STATUS has started %v", left)
	}
	must("add")
	must("check")
	must("status")
	h.expect(
		sent{verb: "STATUS"},
		sent{verb: "ADD", ifname: "eth0", netns: path, id: id, prevResult: true},
		sent{verb: "CHECK", ifname: "eth0", netns: path, id: id, prevResult: true},
		sent{verb: "STATUS"},
	)
	if n := h.mdb(groupA); n != 1 {
		t.Errorf("%d ports have an entry for %v after ADD, want 1", n, groupA)
	}
	receiver := pod.Interface("eth0").Receive(5000)
	h.send(groupA, 10)
	receiver.Wait(groupA, 10)

	h.run("bridge", "mdb", "del", "dev", "cni0", "port", pod.Interface("eth0").Peer().Name(), "grp", groupA.String())
	if err := cnitool("check"); err == nil {
		t.Error("CHECK succeeds although the bridge does not forward")
	}
	h.discard()

	must("del")
	h.gone(groupA)
	must("del") // once more
	h.expect(
		sent{verb: "DEL", ifname: "eth0", netns: path, id: id, prevResult: true},
		sent{verb: "DEL", ifname: "eth0", netns: path, id: id},
	)

	must("add")
	if n := h.attachments(); n != 1 {
		t.Errorf("the daemon has %d attachments, want 1", n)
	}
	h.discard()
	must("gc") // nothing is valid: DEL of what libcni remembers, then GC
	h.expect(
		sent{verb: "DEL", ifname: "eth0", netns: path, id: id, prevResult: true},
		sent{verb: "GC"},
	)
	h.gone(groupA)
}
