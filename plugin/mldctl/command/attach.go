package command

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// network is the name of the network of everything that is attached by hand.
const network = "mldctl"

// namedNetns is where iproute2 keeps the namespaces that have a name.
const namedNetns = "/run/netns"

// nonblock keeps the opening of a named pipe from waiting for a writer.
const nonblock = unix.O_NONBLOCK

// A place is an interface that no CNI runtime manages, as the command line names it.
type place struct {
	netns  string // name or path
	pid    int
	host   string // interface in the caller's namespace
	ifname string
}

// flags adds the flags that name a place.
func (p *place) flags(cmd *cobra.Command) {
	cmd.Flags().IntVar(&p.pid, "pid", 0, "the network namespace of the process with this `number`")
	cmd.Flags().StringVar(&p.host, "host", "", "this `interface` of the host itself")
	cmd.Flags().StringVar(&p.ifname, "interface", "eth0", "`name` of the interface in the namespace")
	cmd.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		entries, _ := os.ReadDir(namedNetns)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names, cobra.ShellCompDirectiveDefault
	}
}

const placeUse = "{NETNS | --pid PID | --host INTERFACE}"

// parse completes a place with the arguments.
func (p *place) parse(cmd *cobra.Command, args []string) error {
	named := 0
	for _, flag := range []string{"pid", "host"} {
		if cmd.Flags().Changed(flag) {
			named++
		}
	}
	if len(args) > 0 {
		p.netns = args[0]
		named++
	}
	switch {
	case len(args) > 1 || named != 1:
		return usageError("name one of NETNS, --pid and --host")
	case cmd.Flags().Changed("pid") && p.pid < 1:
		return usageError("--pid %d: not the number of a process: these begin with 1", p.pid)
	case p.host != "" && cmd.Flags().Changed("interface"):
		return usageError("--host %s names the interface already: leave --interface out", p.host)
	case p.host != "":
		p.ifname = p.host
	}
	if err := p.attachment().Validate(); err != nil {
		return usageError("%v", err)
	}
	return nil
}

// path is where the namespace can be opened.
func (p *place) path() string {
	switch {
	case p.host != "":
		return "/proc/self/ns/net"
	case p.pid != 0:
		return fmt.Sprintf("/proc/%d/ns/net", p.pid)
	case strings.Contains(p.netns, "/"):
		return filepath.Clean(p.netns)
	}
	return filepath.Join(namedNetns, p.netns)
}

// attachment is the key of a place.
func (p *place) attachment() api.Attachment {
	a := api.Attachment{Network: network, IfName: p.ifname}
	switch {
	case p.host != "":
		a.ContainerID = hostID
	case p.pid != 0:
		a.ContainerID = pidPrefix + strconv.Itoa(p.pid)
	default:
		a.ContainerID = containerID(p.path())
	}
	return a
}

// explain says in the words of the command line what the daemon has said in those of CNI.
func (p *place) explain(err error) error {
	fault, ok := errors.AsType[*types.Error](err)
	if !ok {
		return err
	}
	named, ifname, where := p.netns, "--interface "+p.ifname, " in "+p.netns
	switch {
	case p.host != "":
		named, ifname, where = "--host "+p.host, "--host "+p.host, " in the namespace of mldctl"
	case p.pid != 0:
		named = fmt.Sprintf("--pid %d", p.pid)
		where = " in the namespace of " + named
	}
	told := *fault
	told.Msg = strings.NewReplacer(
		fmt.Sprintf("CNI_IFNAME: %q: not found in %s", p.ifname, p.path()), ifname+": no such interface"+where,
		fmt.Sprintf("CNI_NETNS: %q: is the host's namespace: a container's own is needed", p.path()),
		named+": is the host's namespace: name a container's, or an interface of the host with --host",
		fmt.Sprintf("CNI_NETNS: %q", p.path()), named,
		"ready.wait ", "--ready ",
	).Replace(told.Msg)
	return &told
}

// The container ID of the host, and how that of a process begins.
const (
	hostID    = "host"
	pidPrefix = "pid-"
)

// containerID is the name of a namespace in /run/netns. Any other path, and a name that may not be or looks like
// something else, is made one, with a sum of the path, so that no two have the same.
func containerID(path string) string {
	name, named := strings.CutPrefix(strings.TrimPrefix(path, "/var"), namedNetns+"/")
	taken := name == hostID || strings.HasPrefix(name, pidPrefix) || strings.HasPrefix(name, "path-")
	valid := api.Attachment{Network: network, ContainerID: name, IfName: "eth0"}.Validate() == nil
	if named && valid && !taken && len(name) <= maxName {
		return name
	}
	readable := strings.Trim(strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return r
		}
		return '-'
	}, path), "-")
	sum := sha256.Sum256([]byte(path))
	readable = strings.TrimLeft(readable[max(0, len(readable)-maxName):], "-")
	return fmt.Sprintf("path-%s-%x", readable, sum[:4])
}

// maxName is how much of a name or path becomes part of a container ID, in bytes.
const maxName = 100

func (t *tool) attach() *cobra.Command {
	var p place
	var s settings
	cmd := &cobra.Command{
		Use:   "attach " + placeUse + " [--interface NAME] [--group GROUP]...",
		Short: "Attach an interface that no CNI runtime manages",
		Long: `attach starts a listener on an interface, as the CNI plugin does for the containers of a CNI runtime. It is for
everybody else: Docker, Podman 5, systemd-nspawn, and network namespaces made by hand. Unlike the plugin it
starts no daemon: "systemctl start mldd" before, or "/opt/cni/bin/mldd &".

NETNS is a name in /run/netns, or a path. The attachment belongs to the network "mldctl" and ends with detach, or with
the interface. Attached again, it is brought to the new settings, and where that fails it stands with the former ones.
Without groups the listener speaks for the applications alone. The flags are keys of the plugin's configuration, see
mld(5).

If the groups are not forwarded within --timeout, the interface is attached all the same: then standard error says
what is missing, and the exit code is 1. It is an error, and everything is as before, if --ready was mdb or report.

With --json: {"attachment": {"network", "containerID", "ifname"}, "degraded": ...}, the last one if need be.`,
		Example: `  mldctl attach blue --group ff05::4321
  mldctl attach --pid $(docker inspect -f '{{.State.Pid}}' web) --group ff05::4321 --group fd00:1::10@ff3e::8000:1
  mldctl attach --pid $(podman inspect -f '{{.State.Pid}}' web) --group ff05::4321
  mldctl attach --pid $(machinectl show -p Leader --value guest) --interface host0 --group ff05::4321
  mldctl attach --host br0 --group '{"group": "ff05::8", "mode": "exclude", "sources": ["fd00:1::66"], "deliver": false}'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.parse(cmd, args); err != nil {
				return err
			}
			parsed, err := s.parse(cmd)
			if err != nil {
				return err
			}
			return t.runAttach(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), &p, parsed)
		},
	}
	p.flags(cmd)
	s.flags(cmd)
	return cmd
}

// attachDocument is what attach --json prints.
type attachDocument struct {
	Attachment api.Attachment `json:"attachment"`
	Degraded   string         `json:"degraded,omitempty"`
}

func (t *tool) runAttach(ctx context.Context, stdout, stderr io.Writer, p *place, s *api.Settings) error {
	r := &api.Request{Op: api.OpAdd, Attachment: p.attachment(), Settings: s, NetnsPath: p.path(), Host: p.host != ""}
	var err error
	if r.Netns, err = openNetns(p.path()); err != nil {
		return err
	}
	defer r.Netns.Close()
	if err := withHost(r); err != nil {
		return err
	}
	defer r.HostNetns.Close()
	answer, err := t.request(ctx, r, time.Duration(s.Ready.Timeout))
	if err != nil {
		return p.explain(err)
	}
	if t.json {
		if err := printJSON(stdout, attachDocument{r.Attachment, answer.Degraded}); err != nil {
			return err
		}
	}
	if answer.Degraded != "" {
		fmt.Fprintf(stderr, "mldctl: %v: attached, but %s\n", r.Attachment, answer.Degraded)
		return errFault
	}
	return nil
}

func (t *tool) detach() *cobra.Command {
	var p place
	cmd := &cobra.Command{
		Use:   "detach " + placeUse + " [--interface NAME]",
		Short: "Detach what attach has attached",
		Long: `detach takes back what attach has done, named in the same way. A namespace or process that is gone may be named
as well; what was attached there has been detached by then, unless mldd has not noticed its end.

The exit code is 1 if nothing is attached under this name.

With --json: {"attachment": {"network", "containerID", "ifname"}}.`,
		Example: "  mldctl detach blue\n  mldctl detach --pid 4711",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.parse(cmd, args); err != nil {
				return err
			}
			c, err := t.dial()
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), t.patience)
			defer cancel()
			r := &api.Request{Op: api.OpDel, Attachment: p.attachment()}
			answer, err := call(ctx, c, r) // asked again, the next worker would not know what is detached by then
			if err != nil {
				return err
			}
			if answer.Unknown {
				return fmt.Errorf("%v: nothing is attached under this name: see mldctl status --network %s", r.Attachment, network)
			}
			if t.json {
				return printJSON(cmd.OutOrStdout(), attachDocument{Attachment: r.Attachment})
			}
			return nil
		},
	}
	p.flags(cmd)
	byHand := func() api.Attachment { return api.Attachment{Network: network} }
	onInterface := func() api.Attachment { return api.Attachment{Network: network, IfName: p.ifname} }
	cmd.ValidArgsFunction = t.complete(onInterface, netnsOf)
	t.completeFlags(cmd, onInterface, map[string]func(*api.AttachmentStatus) string{"pid": pidOf})
	t.completeFlags(cmd, byHand, map[string]func(*api.AttachmentStatus) string{"host": hostOf, "interface": ifnameOf})
	return cmd
}

// settings are the flags of attach that are keys of a network's configuration.
type settings struct {
	groups     []string
	mldVersion string
	profile    string
	kernel     string
	robustness int
	interval   string
	alwaysDone bool
	ready      string
	timeout    string
}

func (s *settings) flags(cmd *cobra.Command) {
	defaults := api.DefaultSettings()
	f := cmd.Flags()
	f.StringArrayVar(&s.groups, "group", nil, "declare a `group`: ff05::4321, fd00:1::10@ff3e::8000:1 or a JSON object; may be repeated")
	f.StringVar(&s.mldVersion, "mld-version", defaults.MLDVersion, "auto, 2 or 1")
	f.StringVar(&s.profile, "profile", defaults.Profile, "rfc or kame")
	f.StringVar(&s.kernel, "kernel-reports", defaults.KernelReports, "auto, mute or keep")
	f.IntVar(&s.robustness, "robustness", defaults.Robustness, "how often a change is reported, 1 to 7")
	f.StringVar(&s.interval, "unsolicited-report-interval", "", "the longest time between these reports (default 1s in MLDv2, 10s in MLDv1)")
	f.BoolVar(&s.alwaysDone, "always-done", defaults.AlwaysDone, "send a Done on every leave in MLDv1")
	f.StringVar(&s.ready, "ready", defaults.Ready.Wait, "what to wait for: auto, mdb, report or none")
	f.StringVar(&s.timeout, "timeout", defaults.Ready.Timeout.String(), "how long to wait, up to 1m")
	for name, values := range map[string][]string{
		"mld-version":    {api.MLDVersionAuto, api.MLDVersion2, api.MLDVersion1},
		"profile":        {api.ProfileRFC, api.ProfileKAME},
		"kernel-reports": {api.KernelReportsAuto, api.KernelReportsMute, api.KernelReportsKeep},
		"ready":          {api.WaitAuto, api.WaitMDB, api.WaitReport, api.WaitNone},
	} {
		if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err)
		}
	}
}

// parse checks the settings by the rules of the configuration.
func (s *settings) parse(cmd *cobra.Command) (*api.Settings, error) {
	groups := []json.RawMessage{}
	for _, g := range s.groups {
		if strings.HasPrefix(g, "{") && json.Valid([]byte(g)) {
			groups = append(groups, json.RawMessage(g))
			continue
		}
		text, err := json.Marshal(g)
		if err != nil {
			return nil, err
		}
		groups = append(groups, text)
	}
	keys := make(map[string]json.RawMessage)
	for key, value := range map[string]any{
		"groups": groups, "mldVersion": s.mldVersion, "profile": s.profile, "kernelReports": s.kernel,
		"robustness": s.robustness, "alwaysDone": s.alwaysDone,
		"ready":  map[string]string{"wait": s.ready, "timeout": s.timeout},
		"limits": map[string]int{"groups": len(groups), "sources": api.MaxLine}, // the command line is its own limit
	} {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		keys[key] = text
	}
	if cmd.Flags().Changed("unsolicited-report-interval") {
		keys["unsolicitedReportInterval"] = json.RawMessage(strconv.Quote(s.interval))
	}
	parsed, err := api.ParseSettings(keys)
	if err != nil {
		var fault *types.Error
		if errors.As(err, &fault) {
			return nil, usageError("%s", byFlag(fault.Msg))
		}
		return nil, err
	}
	return parsed, nil
}

// flagOf is the flag for each key of the configuration that errors begin with.
var flagOf = map[string]string{
	"groups": "group", "mldVersion": "mld-version", "profile": "profile", "kernelReports": "kernel-reports",
	"robustness": "robustness", "unsolicitedReportInterval": "unsolicited-report-interval", "alwaysDone": "always-done",
	"ready.wait": "ready", "ready.timeout": "timeout",
}

// byFlag names the flag in an error that names a key of the configuration: "groups[0]: ...".
func byFlag(text string) string {
	key, rest, _ := strings.Cut(text, ": ")
	key, _, _ = strings.Cut(key, "[")
	flag, ok := flagOf[key]
	if !ok {
		return text
	}
	return "--" + flag + " " + strings.ReplaceAll(rest, key+"[", "--"+flag+"[")
}
