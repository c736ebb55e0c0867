// Package chain runs a real CNI chain inside a lab: the reference plugin bridge or macvlan, then mld, through libcni, with
// the programs of this repository; or mld alone; or another plugin in its place, to compare. The end-to-end tests and the
// demonstration stand on it.
package chain

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// module is the path of this repository's packages.
const module = "github.com/seed-aaab8e3a/cni-mld"

// IfName is the name of a container's interface.
const IfName = "eth0"

// Build builds mld, mldd, mldctl and the reference plugins of go.mod into dir.
func Build(ctx context.Context, dir string) error {
	for name, pkg := range map[string]string{
		"mld":        module + "/plugin",
		"mldd":       module + "/plugin/mldd",
		"mldctl":     module + "/plugin/mldctl",
		"bridge":     "github.com/containernetworking/plugins/plugins/main/bridge",
		"macvlan":    "github.com/containernetworking/plugins/plugins/main/macvlan",
		"host-local": "github.com/containernetworking/plugins/plugins/ipam/host-local",
	} {
		if err := build(ctx, dir, name, pkg); err != nil {
			return err
		}
	}
	return nil
}

// BuildPeers builds what mld is compared with: the reference plugin tuning, one that does nothing but one call over a
// unix socket, and the least of programs.
func BuildPeers(ctx context.Context, dir string) error {
	return errors.Join(
		build(ctx, dir, "tuning", "github.com/containernetworking/plugins/plugins/meta/tuning"),
		build(ctx, dir, "noop", module+"/e2e/noop"),
		build(ctx, dir, "least", module+"/e2e/least"))
}

func build(ctx context.Context, dir, name, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, name), pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return nil
}

// A Chain is a network configuration that is applied to nodes of a lab.
type Chain struct {
	RunDir string // of mldd

	cfg  Config
	exec *executor
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
}

// Config says what the chain is made of.
type Config struct {
	Host    *netnslab.Node
	Bin     string         // where Build has put the programs
	Dir     string         // for everything that is left on disk; the caller removes it
	Name    string         // of the network; empty means "lab"
	IfName  string         // of the containers' interfaces; empty means [IfName]
	Bridge  string         // name of the bridge, which the lab may have made before
	Master  string         // instead of a bridge: the interface that the containers' macvlans share
	Version string         // of the CNI specification; empty means 1.1.0
	MLD     map[string]any // keys of mld's configuration; nil: the chain is the bridge plugin alone
	Peer    map[string]any // the whole configuration of another plugin, in mld's place
}

// New makes a chain. The daemon is started by the first Add; see [Chain.Stop].
func New(cfg Config) (*Chain, error) {
	cfg.Version = cmp.Or(cfg.Version, "1.1.0")
	cfg.Name = cmp.Or(cfg.Name, "lab")
	cfg.IfName = cmp.Or(cfg.IfName, IfName)
	c := &Chain{RunDir: filepath.Join(cfg.Dir, "run"), cfg: cfg, exec: &executor{host: cfg.Host}}
	if err := os.MkdirAll(c.RunDir, 0o700); err != nil {
		return nil, err
	}
	link := map[string]any{
		"type": "bridge", "bridge": cfg.Bridge,
		"ipam": map[string]any{
			"type": "host-local", "dataDir": filepath.Join(cfg.Dir, "ipam"),
			"ranges": [][]map[string]string{{{"subnet": "fd00:1::/64"}}},
		},
	}
	if cfg.Master != "" {
		delete(link, "bridge")
		link["type"], link["master"] = "macvlan", cfg.Master
	}
	plugins := []map[string]any{link}
	if cfg.MLD != nil || cfg.Peer != nil {
		plugins = append(plugins, c.last(cfg.MLD))
	}
	conflist, err := json.Marshal(map[string]any{"cniVersion": cfg.Version, "name": cfg.Name, "plugins": plugins})
	if err != nil {
		return nil, err
	}
	if c.list, err = libcni.ConfListFromBytes(conflist); err != nil {
		return nil, err
	}
	c.cni = libcni.NewCNIConfigWithCacheDir([]string{cfg.Bin}, filepath.Join(cfg.Dir, "cache"), c.exec)
	return c, nil
}

// last is the configuration of the plugin behind the bridge: mld with the given keys, or its peer.
func (c *Chain) last(keys map[string]any) map[string]any {
	if c.cfg.Peer != nil {
		return maps.Clone(c.cfg.Peer)
	}
	conf := map[string]any{"type": "mld", "runDir": c.RunDir}
	maps.Copy(conf, keys)
	return conf
}

func (c *Chain) runtimeConf(n *netnslab.Node) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: n.Name(), NetNS: n.Path(), IfName: c.cfg.IfName}
}

// Add attaches a node to the network.
func (c *Chain) Add(ctx context.Context, n *netnslab.Node) (types.Result, error) {
	return c.cni.AddNetworkList(ctx, c.list, c.runtimeConf(n))
}

// Check checks a node's attachment.
func (c *Chain) Check(ctx context.Context, n *netnslab.Node) error {
	return c.cni.CheckNetworkList(ctx, c.list, c.runtimeConf(n))
}

// Del detaches a node.
func (c *Chain) Del(ctx context.Context, n *netnslab.Node) error {
	return c.cni.DelNetworkList(ctx, c.list, c.runtimeConf(n))
}

// A Call is one run of the plugin mld, or of its peer, by itself, without the chain around it.
type Call struct {
	Command     string         // CNI_COMMAND
	ContainerID string         // CNI_CONTAINERID
	Netns       string         // CNI_NETNS
	IfName      string         // CNI_IFNAME; empty means the chain's
	Args        string         // CNI_ARGS
	MLD         map[string]any // keys of mld's configuration; nil means the chain's
	Stderr      io.Writer      // nil: what mld says there becomes part of an error that is none of CNI's
}

// Run runs mld, or its peer, as a runtime would after a plugin that has made the interface, and returns its standard
// output. The error of a plugin that has failed is a *types.Error.
func (c *Chain) Run(ctx context.Context, call Call) ([]byte, error) {
	if call.IfName == "" {
		call.IfName = c.cfg.IfName
	}
	if call.MLD == nil {
		call.MLD = c.cfg.MLD
	}
	conf := c.last(call.MLD)
	conf["cniVersion"], conf["name"] = c.cfg.Version, c.list.Name
	if call.Command == "ADD" || call.Command == "CHECK" {
		conf["prevResult"] = map[string]any{
			"cniVersion": c.cfg.Version,
			"interfaces": []map[string]string{{"name": call.IfName, "sandbox": call.Netns}},
		}
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	return c.exec.run(ctx, filepath.Join(c.cfg.Bin, conf["type"].(string)), stdin, []string{
		"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + c.cfg.Bin, "CNI_COMMAND=" + call.Command,
		"CNI_CONTAINERID=" + call.ContainerID, "CNI_NETNS=" + call.Netns, "CNI_IFNAME=" + call.IfName,
		"CNI_ARGS=" + call.Args,
	}, call.Stderr)
}

// Daemon asks the daemon for its status.
func (c *Chain) Daemon(ctx context.Context) (*api.Status, error) {
	answer, err := api.Exchange(ctx, c.RunDir, &api.Request{Op: api.OpStatus})
	if err != nil {
		return nil, err
	}
	return answer.Status, nil
}

// Stop stops the daemon if one runs, keeper and worker, and waits until it has ended.
func (c *Chain) Stop(ctx context.Context) error {
	return c.signal(ctx, unix.SIGTERM)
}

// Kill kills the daemon with SIGKILL, keeper and thereby worker, and waits until it has ended.
func (c *Chain) Kill(ctx context.Context) error {
	return c.signal(ctx, unix.SIGKILL)
}

// signal sends a signal to the keeper, which is the process that was started, and waits for both processes.
func (c *Chain) signal(ctx context.Context, sig unix.Signal) error {
	status, err := c.Daemon(ctx)
	if api.NotRunning(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var fds []int
	for _, pid := range []int{status.KeeperPID, status.PID} {
		fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("mldd, process %d: %w", pid, err)
		}
		defer unix.Close(fd)
		fds = append(fds, fd)
	}
	if err := unix.PidfdSendSignal(fds[0], sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("mldd, process %d: %w", status.KeeperPID, err)
	}
	return errors.Join(waitExit(ctx, fds[0], status.KeeperPID), waitExit(ctx, fds[1], status.PID))
}

// waitExit waits until the process of a pidfd has ended.
func waitExit(ctx context.Context, fd, pid int) error {
	for {
		timeout := 10 * time.Second
		if deadline, ok := ctx.Deadline(); ok {
			timeout = time.Until(deadline)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(timeout, 0).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("mldd, process %d: has not ended after %v", pid, timeout)
		default:
			return nil
		}
	}
}

// executor runs plugins inside the lab's host namespace.
type executor struct {
	host *netnslab.Node
	version.PluginDecoder
}

// ExecPlugin implements invoke.Exec.
func (e *executor) ExecPlugin(ctx context.Context, plugin string, stdin []byte, environ []string) ([]byte, error) {
	return e.run(ctx, plugin, stdin, environ, nil)
}

func (e *executor) run(ctx context.Context, plugin string, stdin []byte, environ []string, log io.Writer) ([]byte, error) {
	cmd := e.host.Command(ctx, plugin)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = environ
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if log != nil {
		cmd.Stderr = log
	}
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	var said types.Error
	if jsonErr := json.Unmarshal(out, &said); jsonErr == nil && said.Msg != "" {
		return nil, &said
	}
	return nil, fmt.Errorf("%s: %w: %s%s", filepath.Base(plugin), err, out, stderr.String())
}

// FindInPath implements invoke.Exec.
func (e *executor) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}
