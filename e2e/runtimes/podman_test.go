package runtimes

import (
	"net/netip"
	"os"
	"testing"
)

// podmanConfig is for a root that may lack CAP_SYS_RESOURCE.
const podmanConfig = `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
cni_plugin_dirs = ["` + binDir + `"]
network_config_dir = "` + confDir + `"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
`

// Copying the image instead of laying layers over it works on every file system.
const podmanStorage = `[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
`

func TestPodman(t *testing.T) {
	h := newHost(t, 1)
	h.configure(confDir, "1.0.0", spyName, map[string]any{"groups": []netip.Addr{groupA}})
	for path, text := range map[string]string{
		"/etc/containers/containers.conf": podmanConfig, "/etc/containers/storage.conf": podmanStorage,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s%s", h.run("podman", "--version"), h.run("conmon", "--version"))
	h.run("podman", "load", "-i", imageArchive)
	t.Cleanup(func() {
		h.run("podman", "rm", "-f", "-i", "-t", "0", "alice")
		h.run("podman", "rmi", "-f", imageName)
	})
	h.run("podman", "run", "-d", "--name", "alice", "--network", h.network, "--log-driver", "k8s-file",
		"--cgroup-parent", "/"+os.Getenv(cgroupEnv), imageName, port)
	version := sent{verb: "VERSION", ifname: "dummy", netns: "dummy"}
	want := sent{
		verb: "ADD", ifname: "eth0", netns: "/run/netns/netns-[0-9a-f-]{36}", id: "[0-9a-f]{64}",
		args: "IgnoreUnknown=1;K8S_POD_NAME=alice", prevResult: true,
	}
	calls := h.expect(version, want)
	if path := calls[0].Env["CNI_PATH"]; path != "dummy" {
		t.Errorf("VERSION: CNI_PATH is %q, want dummy", path)
	}
	h.joined(calls[1], groupA)
	h.delivers(groupA, func() string { return h.run("podman", "logs", "alice") })

	h.run("podman", "rm", "-f", "-t", "0", "alice")
	want.verb = "DEL"
	h.expect(version, want)
	h.gone(groupA)
	h.ended("conmon")
}
