package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// How long the verbs may take. ADD and CHECK have the time that readiness may take besides.
const (
	callTimeout = 10 * time.Second
	delTimeout  = 5 * time.Second
)

// add attaches the interface and prints the previous result.
func add(args *skel.CmdArgs) error {
	c, request, err := newRequest(api.OpAdd, args)
	if err != nil {
		return err
	}
	defer request.Close()
	result, e := c.result() // before anything is changed
	if e != nil {
		return e
	}
	if c.unheard {
		logger().Warn("MLD_GROUPS in CNI_ARGS does not count: groups are named elsewhere", "attachment", request.Attachment)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.settings.Ready.Timeout)+callTimeout)
	defer cancel()
	if err := api.CheckRunDir(c.runDir); err != nil {
		return tryAgain(err)
	}
	answer, err := api.Exchange(ctx, c.runDir, request)
	if api.NotRunning(err) && c.autostart {
		if err = ensureRunning(ctx, c.runDir, args.Path); err == nil {
			answer, err = api.Exchange(ctx, c.runDir, request)
		}
	}
	if err != nil {
		return tryAgain(err)
	}
	if answer.Degraded != "" {
		logger().Warn("attached, not known to be ready", "attachment", request.Attachment, "reason", answer.Degraded)
	}
	_, err = os.Stdout.Write(append(result, '\n')) //nolint:forbidigo // the result is the protocol
	if err != nil {
		return types.NewError(types.ErrIOFailure, "standard output: "+err.Error(), "")
	}
	return nil
}

// check asks the daemon whether the attachment works.
func check(args *skel.CmdArgs) error {
	c, request, err := newRequest(api.OpCheck, args)
	if err != nil {
		return err
	}
	defer request.Close()
	if _, e := c.result(); e != nil { // CHECK has the result of ADD
		return e
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.settings.Ready.Timeout)+callTimeout)
	defer cancel()
	if _, err := api.Exchange(ctx, c.runDir, request); err != nil {
		return tryAgain(err)
	}
	return nil
}

// del detaches the interface. It looks at no more of the configuration than it needs, for what was added with
// another must go too. That something is gone or cannot be is success: the runtime has nothing better to do than to
// go on. Only a daemon that answers with an error, or not at all, makes it fail.
func del(args *skel.CmdArgs) error {
	conf := netConf{RunDir: api.DefaultRunDir}
	parseErr := json.Unmarshal(args.StdinData, &conf)
	request := &api.Request{
		Op:         api.OpDel,
		Attachment: api.Attachment{Network: conf.Name, ContainerID: args.ContainerID, IfName: args.IfName},
		NetnsPath:  args.Netns,
	}
	if err := errors.Join(parseErr, request.Validate()); err != nil { // no ADD can have succeeded with it
		logger().Warn("nothing to detach", "error", err)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), delTimeout)
	defer cancel()
	return detach(ctx, conf.RunDir, request, func() error { return forget(conf.RunDir, request.Attachment) })
}

// gc detaches what is attached to the network and is not in the list of what the runtime still knows. A list that is not
// understood is an error, and nothing goes. Otherwise it is as careful as del.
func gc(args *skel.CmdArgs) error {
	conf := netConf{RunDir: api.DefaultRunDir}
	if err := json.Unmarshal(args.StdinData, &conf); err != nil { // no ADD can have succeeded with it
		logger().Warn("nothing to detach", "error", err)
		return nil
	}
	if conf.Valid == nil {
		return nil
	}
	valid, err := parseValid(conf.Name, conf.Valid)
	if err != nil {
		return err
	}
	request := &api.Request{Op: api.OpGC, Attachment: api.Attachment{Network: conf.Name}, Valid: valid}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return detach(ctx, conf.RunDir, request, func() error {
		remembered, err := api.Remembered(conf.RunDir, conf.Name)
		if err != nil {
			return err
		}
		return forget(conf.RunDir, slices.DeleteFunc(remembered, func(a api.Attachment) bool {
			return slices.Contains(valid, api.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
		})...)
	})
}

// netConf is what DEL and GC need of a configuration.
type netConf struct {
	Name   string          `json:"name"`
	RunDir string          `json:"runDir"`
	Valid  json.RawMessage `json:"cni.dev/valid-attachments"` // GC; nil if there is none
}

// parseValid reads the list of a network's attachments that are still valid. libcni writes an empty one as null when
// the runtime has made it so, as CRI-O does for a network without pods.
func parseValid(network string, raw json.RawMessage) ([]api.Attachment, error) {
	const key, rule = "cni.dev/valid-attachments", `must be a list such as [{"containerID": "c1", "ifname": "eth0"}]`
	var list []types.GCAttachment
	if json.Unmarshal(raw, &list) != nil {
		return nil, api.InvalidConfig(key, raw, rule)
	}
	valid := make([]api.Attachment, 0, len(list))
	for i, v := range list {
		a := api.Attachment{Network: network, ContainerID: v.ContainerID, IfName: v.IfName}
		if err := a.Validate(); err != nil {
			return nil, api.InvalidConfig(fmt.Sprintf("%s[%d]", key, i), v, err.Error())
		}
		a.Network = "" // as api.Request has them
		valid = append(valid, a)
	}
	return valid, nil
}

// detach asks the daemon to detach. If there is none it takes the lock, so that none is started meanwhile, and lets
// forget remove the state files, so that the next one does not bring the attachments back.
func detach(ctx context.Context, runDir string, request *api.Request, forget func() error) error {
	_, err := api.Exchange(ctx, runDir, request)
	if api.NotRunning(err) {
		var unlock func()
		if unlock, err = lock(ctx, runDir); errors.Is(err, fs.ErrNotExist) { // no run directory
			return nil
		}
		if err != nil {
			return tryAgain(err)
		}
		defer unlock()
		if _, err = api.Exchange(ctx, runDir, request); api.NotRunning(err) {
			err = forget()
			if _, again := api.Exchange(ctx, runDir, request); !api.NotRunning(again) {
				err = again // of one that has come meanwhile, without the lock, and may have read the files
			}
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, api.ErrRunDir): // which no ADD has trusted
		logger().Warn("nothing to detach", "network", request.Network, "container", request.ContainerID, "error", err)
		return nil
	default:
		return tryAgain(err)
	}
}

// forget removes the state files of attachments, as far as it can.
func forget(runDir string, attachments ...api.Attachment) error {
	var errs []error
	for _, a := range attachments {
		if err := os.Remove(api.StatePath(runDir, a)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// status says whether an ADD would find a daemon or could start one. It starts none. Where neither is so, code 51 tells
// of containers of the network that were left without their listener, and 50 that there are none.
func status(args *skel.CmdArgs) error {
	c, e := parseConfig(api.OpStatus, args)
	if e != nil {
		return e
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	unavailable := func(err error) error {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), remedy(err))
	}
	if err := api.CheckRunDir(c.runDir); err != nil {
		return unavailable(err)
	}
	_, err := api.Exchange(ctx, c.runDir, &api.Request{Op: api.OpStatus})
	gone := api.NotRunning(err)
	if gone && c.autostart {
		var binary string
		if binary, err = findDaemon(args.Path); err == nil {
			err = try(ctx, binary, c.runDir)
		}
	}
	if err == nil {
		return nil
	}
	left, leftErr := api.Remembered(c.runDir, c.attachment.Network)
	if !gone || len(left) == 0 {
		return unavailable(errors.Join(err, leftErr))
	}
	return types.NewError(types.ErrLimitedConnectivity,
		fmt.Sprintf("%v; %d attachments of network %s are without their listener", err, len(left), c.attachment.Network), remedy(err))
}

// newRequest reads the configuration and opens both network namespaces. The caller closes the request.
func newRequest(op string, args *skel.CmdArgs) (*config, *api.Request, error) {
	c, e := parseConfig(op, args)
	if e != nil {
		return nil, nil, e
	}
	if err := c.attachment.Validate(); err != nil {
		return nil, nil, err
	}
	r := &api.Request{Op: op, Attachment: c.attachment, Settings: c.settings, NetnsPath: args.Netns}
	var err error
	if r.Netns, err = openNetns(args.Netns); err != nil {
		return nil, nil, types.NewError(types.ErrInvalidEnvironmentVariables,
			fmt.Sprintf("CNI_NETNS: %v: must be the path of the container's network namespace", err), "")
	}
	if r.HostNetns, err = openNetns("/proc/thread-self/ns/net"); err != nil {
		r.Close()
		return nil, nil, types.NewError(types.ErrIOFailure, "own network namespace: "+err.Error(), "")
	}
	same, err := sameFile(r.Netns, r.HostNetns)
	if err == nil && same {
		err = errors.New("is the plugin's own namespace: must be the container's")
	}
	if err != nil {
		r.Close()
		return nil, nil, types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS: %s: %v", args.Netns, err), "")
	}
	return c, r, nil
}

// openNetns opens what should be a network namespace, which the daemon verifies. The path may be anything, and
// O_NONBLOCK keeps a named pipe from holding us.
func openNetns(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // close-on-exec, as os opens every file
}

func sameFile(a, b *os.File) (bool, error) {
	ai, err := a.Stat()
	if err != nil {
		return false, err
	}
	bi, err := b.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(ai, bi), nil
}

// tryAgain makes CNI's code 11 of an error that has no code yet: it tells of the way to the daemon, which may be
// better next time.
func tryAgain(err error) *types.Error {
	var e *types.Error
	if errors.As(err, &e) {
		return e
	}
	return types.NewError(types.ErrTryAgainLater, err.Error(), remedy(err))
}

// remedy says what to do about a daemon that is missing.
func remedy(err error) string {
	if api.NotRunning(err) || errors.Is(err, errStart) {
		return "start mldd by systemd, or put mldd beside mld and leave autostart on, and the next ADD starts it"
	}
	return ""
}

// logger writes to standard error, which runtimes put into their log.
func logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("plugin", "mld")
}
