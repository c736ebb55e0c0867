package runtimes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	containerdLog    = "/run/containerd.log"

	// A runtime handler of the CRI takes its network from a directory of its own.
	plainHandler, mldHandler = "plain", "mld"
	plainDir, mldDir         = "/etc/cni/plain.d", "/etc/cni/mld.d"
)

// containerdConfig is for a root that may lack CAP_SYS_RESOURCE and for a kernel without AppArmor. Copying the image
// instead of laying layers over it works on every file system.
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  sandbox_image = "` + imageName + `"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "` + binDir + `"
    conf_dir = "` + confDir + `"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.` + plainHandler + `]
      runtime_type = "io.containerd.runc.v2"
      cni_conf_dir = "` + plainDir + `"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.` + mldHandler + `]
      runtime_type = "io.containerd.runc.v2"
      cni_conf_dir = "` + mldDir + `"
`

// A containerd is one at work on a host, and a client of its CRI.
type containerd struct {
	*host
	cri.RuntimeServiceClient
	ctx context.Context
}

// startContainerd starts containerd, which loads the networks that are configured, and gives it the image.
func (h *host) startContainerd() *containerd {
	h.t.Helper()
	h.t.Logf("%s%s", h.run("containerd", "--version"), h.run("runc", "--version"))
	if err := os.WriteFile("/etc/containerd/config.toml", []byte(containerdConfig), 0o600); err != nil {
		h.t.Fatal(err)
	}
	log, err := os.Create(containerdLog)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	// The cleanup still has calls to make when the test's own context has ended.
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	process := h.Host().Command(ctx, "containerd")
	process.Stdout, process.Stderr = log, log
	if err := process.Start(); err != nil {
		cancel()
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		defer cancel()
		_ = process.Process.Signal(unix.SIGTERM)
		if err := process.Wait(); err != nil {
			h.t.Errorf("containerd: %v", err)
		}
		h.ended("containerd-shim-runc-v2")
		if h.t.Failed() {
			text, _ := os.ReadFile(containerdLog)
			h.t.Logf("containerd's log:\n%s", text)
		}
		for _, dir := range []string{"/run/containerd", "/var/lib/containerd", plainDir, mldDir} {
			if err := os.RemoveAll(dir); err != nil {
				h.t.Error(err)
			}
		}
	})
	conn, err := grpc.NewClient("unix://"+containerdSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	c := &containerd{h, cri.NewRuntimeServiceClient(conn), ctx}
	h.wait("containerd with a network", func() (bool, string) {
		status, err := c.Status(ctx, &cri.StatusRequest{})
		ready := err == nil
		for _, condition := range status.GetStatus().GetConditions() {
			ready = ready && condition.Status
		}
		return ready, fmt.Sprint(status, err)
	})
	h.run("ctr", "-n", "k8s.io", "image", "import", "--snapshotter", "native", imageArchive)
	images := cri.NewImageServiceClient(conn)
	h.wait("image", func() (bool, string) {
		status, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: imageName}})
		return status.GetImage() != nil, fmt.Sprint(status, err)
	})
	return c
}

// A pod is a sandbox of containerd's.
type pod struct {
	*containerd
	id     string // empty when it is gone
	config *cri.PodSandboxConfig
	took   time.Duration // of RunPodSandbox
}

// runPod runs a pod's sandbox. It is removed with the test, if it still is there.
func (c *containerd) runPod(name, handler string, annotations map[string]string) *pod {
	c.t.Helper()
	p, err := c.tryPod(name, handler, annotations)
	if err != nil {
		c.t.Fatalf("RunPodSandbox: %v", err)
	}
	c.t.Cleanup(func() {
		if p.id != "" {
			p.remove()
		}
	})
	return p
}

func (c *containerd) tryPod(name, handler string, annotations map[string]string) (*pod, error) {
	p := &pod{containerd: c, config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		LogDirectory: filepath.Join("/run/logs", c.network, name),
		Annotations:  annotations,
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/" + os.Getenv(cgroupEnv)},
	}}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	begin := time.Now()
	answer, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	p.id, p.took = answer.GetPodSandboxId(), time.Since(begin)
	return p, err
}

// runReceiver runs the receiver in the pod. The returned function tells what it has printed.
func (p *pod) runReceiver() (printed func() string) {
	p.t.Helper()
	created, err := p.CreateContainer(p.ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "receiver"}, Image: &cri.ImageSpec{Image: imageName},
			Args: []string{port}, LogPath: "receiver.log", Linux: &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		p.t.Fatalf("CreateContainer: %v", err)
	}
	if _, err := p.StartContainer(p.ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		p.t.Fatalf("StartContainer: %v", err)
	}
	return func() string {
		text, err := os.ReadFile(filepath.Join(p.config.LogDirectory, "receiver.log"))
		if err != nil {
			p.t.Fatal(err)
		}
		return string(text)
	}
}

// remove stops and removes the pod, as a kubelet does.
func (p *pod) remove() {
	p.t.Helper()
	_, stop := p.StopPodSandbox(p.ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	_, remove := p.RemovePodSandbox(p.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	if err := errors.Join(stop, remove); err != nil {
		p.t.Errorf("pod %s: %v", p.config.Metadata.Name, err)
	}
	p.id = ""
}

// sentByCRI is what containerd's CRI sends for a pod: the arguments in any order.
func sentByCRI(verb, pod string) sent {
	return sent{
		verb: verb, ifname: "eth0", netns: "/var/run/netns/cni-[0-9a-f-]{36}", id: "[0-9a-f]{64}", prevResult: true,
		args: "(?:(?:IgnoreUnknown=1|K8S_POD_NAMESPACE=default|K8S_POD_NAME=" + pod + "|K8S_POD_UID=uid-" + pod +
			"|K8S_POD_INFRA_CONTAINER_ID=[0-9a-f]{64})(?:;|$)){5}",
	}
}

// sentByCRIAgain is its second DEL for the pod.
func sentByCRIAgain(pod string) sent {
	s := sentByCRI("DEL", pod)
	s.netns, s.prevResult = "", false
	return s
}

// The network's groups.
func TestContainerd(t *testing.T) {
	h := newHost(t, 1)
	h.configure(confDir, "1.0.0", spyName, map[string]any{"groups": []netip.Addr{groupA}})
	c := h.startContainerd()

	p := c.runPod("alice", "", nil)
	added := h.expect(sentByCRI("ADD", "alice"))
	h.joined(added[0], groupA)
	h.delivers(groupA, p.runReceiver())

	p.remove()
	h.expect(sentByCRI("DEL", "alice"), sentByCRIAgain("alice"))
	h.gone(groupA)
}

// The pod's own groups, from an annotation.
func TestContainerdAnnotation(t *testing.T) {
	h := newHost(t, 2) // which lets sources be named
	h.configure(confDir, "1.0.0", spyName, map[string]any{
		"annotation": "mld/groups", "capabilities": map[string]bool{"io.kubernetes.cri.pod-annotations": true},
	})
	c := h.startContainerd()

	p := c.runPod("alice", "", map[string]string{
		"mld/groups": fmt.Sprintf("%v,%v@%v", groupB, source, ssm), "example.com/other": "nothing of ours",
	})
	added := h.expect(sentByCRI("ADD", "alice"))
	h.joined(added[0], groupB, ssm)
	printed := p.runReceiver()
	h.delivers(groupB, printed)
	h.delivers(ssm, printed)

	bob := c.runPod("bob", "", nil) // another pod of the network has not asked
	if n := h.mdb(groupB); n != 1 {
		t.Errorf("%d ports have an entry for %v, want 1", n, groupB)
	}
	bob.remove()
	p.remove()
	h.gone(groupB, ssm)

	carol, err := c.tryPod("carol", "", map[string]string{"mld/groups": "ff02::1"})
	if err == nil {
		carol.remove()
	}
	if !strings.Contains(fmt.Sprint(err), "mld/groups") || !strings.Contains(fmt.Sprint(err), "ff02::1") {
		t.Errorf("what cannot be reported: RunPodSandbox: %v; want the annotation and the group named", err)
	}
	h.gone()
}

// The plugin does not hold up the runtime, neither when it starts the daemon nor afterwards.
func TestContainerdTime(t *testing.T) {
	h := newHost(t, 1)
	h.configure(confDir, "1.0.0", "", nil)
	h.configure(plainDir, "1.0.0", "", nil)
	h.configure(mldDir, "1.0.0", "mld", map[string]any{"groups": []netip.Addr{groupA}})
	c := h.startContainerd()

	took := map[string][]time.Duration{}
	c.runPod("warm-up", plainHandler, nil).remove()
	for i := range 10 { // taking turns
		for _, handler := range []string{plainHandler, mldHandler} {
			p := c.runPod(fmt.Sprintf("%s-%d", handler, i), handler, nil)
			took[handler] = append(took[handler], p.took)
			if n := h.mdb(groupA); (n == 1) != (handler == mldHandler) {
				t.Errorf("%s: %d ports have an entry for %v", handler, n, groupA)
			}
			p.remove()
		}
	}
	first := took[mldHandler][0] // has started the daemon
	took[mldHandler] = took[mldHandler][1:]
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RunPodSandbox\tleast\tmedian\tmost")
	for _, handler := range []string{plainHandler, mldHandler} {
		d := took[handler]
		slices.Sort(d)
		fmt.Fprintf(w, "%s\t%v\t%v\t%v\n", handler, ms(d[0]), ms(median(d)), ms(d[len(d)-1]))
	}
	fmt.Fprintf(w, "mld, the first\t\t%v\t\n", ms(first))
	_ = w.Flush() // into memory
	plain, with := took[plainHandler], took[mldHandler]
	t.Logf("with mld to without: the least %.2f, the medians %.2f\n%s",
		with[0].Seconds()/plain[0].Seconds(), median(with).Seconds()/median(plain).Seconds(), &table)
	if with[0] > 2*plain[0] && median(with) > 2*median(plain) { // one of them alone may be others at work
		t.Errorf("with mld RunPodSandbox takes %v, and without %v: more than twice as long", ms(median(with)), ms(median(plain)))
	}
	if most := plain[len(plain)-1]; first > 3*most {
		t.Errorf("the first took %v, and without mld %v at most: more than three times as long", ms(first), ms(most))
	}
	h.gone(groupA)
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

func median(sorted []time.Duration) time.Duration { return sorted[len(sorted)/2] }

// ctr has no pods: its networks are made for the task, and taken away when that is gone.
func TestCtr(t *testing.T) {
	h := newHost(t, 1)
	h.configure(confDir, "1.0.0", spyName, map[string]any{"groups": []netip.Addr{groupA}})
	h.startContainerd()
	output := "/run/ctr.out"
	out, err := os.Create(output)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	var complaint bytes.Buffer
	ctr := h.command("ctr", "-n", "k8s.io", "run", "--rm", "--cni", "--snapshotter", "native",
		"--cgroup", os.Getenv(cgroupEnv)+"/alice", imageName, "alice", "/receiver", port)
	ctr.Stdout, ctr.Stderr = out, &complaint
	if err := ctr.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = h.command("ctr", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", "alice").Run() // unless it has ended
		if err := ctr.Wait(); err != nil && complaint.Len() > 0 {
			t.Errorf("ctr: %v: %s", err, &complaint)
		}
	})
	printed := func() string {
		text, err := os.ReadFile(output)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	h.wait("receiver", func() (bool, string) { return strings.Contains(printed(), "bound\n"), complaint.String() })
	want := sent{verb: "ADD", ifname: "eth0", netns: "/proc/[0-9]+/ns/net", id: "k8s.io-alice", prevResult: true}
	added := h.expect(want)
	h.joined(added[0], groupA)
	h.delivers(groupA, printed)

	h.run("ctr", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", "alice")
	h.wait("end of ctr", func() (bool, string) {
		calls, err := os.ReadFile(spyLog)
		return bytes.Contains(calls, []byte("DEL")), fmt.Sprint(err)
	})
	want.verb, want.netns = "DEL", ""
	h.expect(want)
	h.gone(groupA)
}

// A task that ctr has left to itself ends without a DEL. Its namespace goes with it all the same.
func TestCtrDetached(t *testing.T) {
	h := newHost(t, 1)
	h.configure(confDir, "1.0.0", spyName, map[string]any{"groups": []netip.Addr{groupA}})
	h.startContainerd()
	ctr := func(args ...string) { h.run("ctr", append([]string{"-n", "k8s.io"}, args...)...) }
	ctr("run", "-d", "--cni", "--snapshotter", "native", "--cgroup", os.Getenv(cgroupEnv)+"/bob", imageName, "bob")
	added := h.expect(sent{verb: "ADD", ifname: "eth0", netns: "/proc/[0-9]+/ns/net", id: "k8s.io-bob", prevResult: true})
	h.joined(added[0], groupA)

	ctr("task", "kill", "-s", "SIGKILL", "bob")
	h.wait("end of the attachment", func() (bool, string) { n := h.attachments(); return n == 0, fmt.Sprint(n) })
	h.gone(groupA)
	h.wait("end of the task", func() (bool, string) {
		err := h.command("ctr", "-n", "k8s.io", "task", "rm", "bob").Run()
		return err == nil, fmt.Sprint(err)
	})
	ctr("container", "rm", "bob")
	for _, path := range []string{leases, results} { // which nobody gives back
		if err := os.RemoveAll(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(spyLog); err == nil {
		t.Error("ctr has called the plugin once more: is this still the test that it says?")
	}
}
