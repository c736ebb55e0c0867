package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// Exit codes.
const (
	exitFine     = 0
	exitFailure  = 1 // as below
	exitUsage    = 2
	exitNoDaemon = 3
)

const exitCodes = `Exit codes: 0 all is fine; 1 something is degraded or disagrees, what was asked for is not there,
or a request was refused or failed; 2 the command line is wrong; 3 no daemon answers.`

// patience is how long a daemon may take to answer, beside what it was asked to wait for.
const patience = 30 * time.Second

// errFault ends a command that has said already what is wrong.
var errFault = errors.New("something is degraded or disagrees")

// errNoDaemon is wrapped by the errors of a daemon that does not run, or has gone.
var errNoDaemon = errors.New("is mldd running, and is this its --run-dir? to start it: systemctl start mldd, or /opt/cni/bin/mldd &")

// A wrongUsage says what is wrong with a command line.
type wrongUsage struct{ error }

func usageError(format string, args ...any) error {
	return wrongUsage{fmt.Errorf(format, args...)}
}

// flagError says which value a flag has not, and what the flag is for, in place of what a parser of numbers says.
func flagError(_ *cobra.Command, err error) error {
	invalid, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	flag := invalid.GetFlag()
	rule := "not a whole number"
	switch {
	case flag.Value.Type() == "bool":
		rule = "neither true nor false"
	case errors.Is(err, strconv.ErrRange):
		rule = "too large a number"
	}
	_, meaning := pflag.UnquoteUsage(flag)
	return fmt.Errorf("--%s %s: %s: %s", flag.Name, api.Cut(invalid.GetValue()), rule, meaning)
}

// A tool is what the commands share.
type tool struct {
	version  string
	runDir   string
	json     bool
	begun    bool // the command line was in order
	patience time.Duration
	glance   time.Duration
	now      func() time.Time
}

// New makes the command mldctl, complete with what cobra adds when it runs.
func New(version string) *cobra.Command {
	root, _ := newRoot(version)
	addDefaults(root)
	return root
}

func newRoot(version string) (*cobra.Command, *tool) {
	t := &tool{version: version, patience: patience, glance: glance, now: time.Now}
	root := &cobra.Command{
		Use:   "mldctl",
		Short: "Look into mldd, the MLD listeners of this host's containers",
		Long: `mldctl shows what mldd knows and does: the interfaces that it listens on, the multicast groups that
are wanted, reported and forwarded there, and what happens. It also attaches interfaces that no CNI runtime manages.

` + exitCodes,
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !filepath.IsAbs(t.runDir) {
				return usageError("--run-dir %q: must be an absolute path such as %s", t.runDir, api.DefaultRunDir)
			}
			t.begun = true
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&t.runDir, "run-dir", api.DefaultRunDir, "run `directory` of mldd")
	root.PersistentFlags().BoolVar(&t.json, "json", false, "print JSON: one document, or an object in each line for what goes on")
	root.Flags().Bool("version", false, "print the version and exit")
	root.SetVersionTemplate("mldctl {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(t.status(), t.groups(), t.watch(), t.attach(), t.detach(), t.versions())
	return root, t
}

// addDefaults adds cobra's commands, which write to where root does by then. As cobra makes them, they answer a command or
// a shell that they do not know with help, and all is fine.
func addDefaults(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Args = func(_ *cobra.Command, args []string) error {
				of, unknown, err := root.Find(args)
				if err != nil {
					return err
				}
				return cobra.NoArgs(of, unknown)
			}
		case "completion":
			c.RunE = root.RunE
		}
	}
}

// Run runs mldctl with some arguments and returns its exit code.
func Run(ctx context.Context, version string, args []string, stdout, stderr io.Writer) int {
	root, t := newRoot(version)
	return t.run(ctx, root, args, stdout, stderr)
}

func (t *tool) run(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	addDefaults(root)
	cmd, err := root.ExecuteContextC(ctx)
	_, wrong := errors.AsType[wrongUsage](err)
	switch {
	case err == nil:
		return exitFine
	case errors.Is(err, errFault):
		return exitFailure
	case wrong, !t.begun: // what cobra itself finds wrong has no type
		fmt.Fprintf(stderr, "mldctl: %v: see %s --help\n", err, cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(stderr, "mldctl: %v\n", err)
	if errors.Is(err, errNoDaemon) || errors.Is(err, context.DeadlineExceeded) {
		return exitNoDaemon
	}
	return exitFailure
}

// dial connects to the daemon.
func (t *tool) dial() (*api.Client, error) {
	c, err := api.Dial(t.runDir)
	return c, exchangeError(err)
}

// exchangeError marks the errors that mean that there is no daemon.
func exchangeError(err error) error {
	if api.NotRunning(err) {
		return fmt.Errorf("%w: %w", err, errNoDaemon)
	}
	return err
}

// request sends a request that may take a while beside the daemon's patience, over a connection of its own. If the worker of
// mldd goes away before it answers, the next one is asked. An error that is a *types.Error is the daemon's.
func (t *tool) request(ctx context.Context, r *api.Request, while time.Duration) (*api.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, t.patience+while)
	defer cancel()
	answer, err := api.Exchange(ctx, t.runDir, r)
	return answer, exchangeError(err)
}

// call sends a request once. An error that is a *types.Error is the daemon's.
func call(ctx context.Context, c *api.Client, r *api.Request) (*api.Answer, error) {
	answer, err := c.Call(ctx, r)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	return answer, exchangeError(err)
}

// lines asks for all lines of a kind, and returns those that are wanted. If the worker of mldd goes away before the last
// one, the next one is asked, for all of them. With an error it returns what has come.
func (t *tool) lines(ctx context.Context, r *api.Request, wanted func(*api.Line) bool) (list []*api.Line, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	if err := withHost(r); err != nil {
		return nil, err
	}
	defer r.HostNetns.Close()
	for range maxWorkers {
		var c *api.Client
		if c, err = t.dial(); err != nil {
			return nil, err
		}
		list, err = stream(ctx, c, r, wanted)
		c.Close()
		if !api.NotRunning(err) {
			break
		}
	}
	return list, exchangeError(err)
}

// maxWorkers is how many workers, each of which may be replaced by the next one, are asked for lines.
const maxWorkers = 10

// stream is lines of one worker.
func stream(ctx context.Context, c *api.Client, r *api.Request, wanted func(*api.Line) bool) (list []*api.Line, err error) {
	for line, err := range c.Stream(ctx, r) {
		if err != nil {
			return list, err
		}
		if wanted(line) {
			list = append(list, line)
		}
	}
	return list, nil
}

// withHost gives a request the caller's network namespace, where the daemon is to look for bridges.
func withHost(r *api.Request) (err error) {
	if r.HostNetns, err = openNetns("/proc/self/ns/net"); err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	return nil
}

// filters adds the flags that choose attachments.
func (t *tool) filters(cmd *cobra.Command, a *api.Attachment) {
	cmd.Flags().StringVar(&a.Network, "network", "", "only this `network`")
	cmd.Flags().StringVar(&a.ContainerID, "container", "", "only containers whose ID begins with `id`")
	cmd.Flags().StringVar(&a.IfName, "interface", "", "only interfaces of this `name` in their container")
	t.completeFlags(cmd, func() api.Attachment { return *a }, map[string]func(*api.AttachmentStatus) string{
		"network": networkOf, "container": containerOf, "interface": ifnameOf,
	})
	cmd.ValidArgsFunction = cobra.NoFileCompletions
}

// printJSON prints a document.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// age is how long ago something was, in its largest unit.
func age(now, then time.Time) string {
	switch d := now.Sub(then); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	}
}

// shortID cuts the long ID of a runtime; --container takes the short one as well.
func shortID(id string) string {
	const long, short = 64, 13
	if len(id) < long {
		return id
	}
	return id[:short]
}

// openNetns opens a network namespace, without waiting if it is something else.
func openNetns(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|nonblock, 0)
}
