// Noop is a CNI plugin that does nothing but pass the previous result on: the least that any plugin costs. With key
// socket, the path of a server that answers a line with a line, it makes one call before: the least that a plugin with a
// daemon costs. With key runDir the call is one to mldd, that of a DEL with nothing to detach. How long a call took is
// in the file of key took, if there is one.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// patience is the most that a call may take.
const patience = 10 * time.Second

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del}, version.All, "CNI plugin noop")
}

type config struct {
	types.NetConf
	Socket string `json:"socket"`
	RunDir string `json:"runDir"`
	Took   string `json:"took"`
}

func parse(args *skel.CmdArgs) (*config, error) {
	var c config
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return nil, err
	}
	return &c, version.ParsePrevResult(&c.NetConf)
}

func add(args *skel.CmdArgs) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	if err := call(c, args); err != nil {
		return err
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	return call(c, args)
}

func call(c *config, args *skel.CmdArgs) error {
	var err error
	begin := time.Now()
	switch {
	case c.Socket != "":
		err = callPlain(c.Socket)
	case c.RunDir != "":
		err = callDaemon(c, args)
	}
	if err != nil || c.Took == "" {
		return err
	}
	return os.WriteFile(c.Took, []byte(time.Since(begin).String()), 0o600)
}

func callPlain(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("{}\n")); err != nil {
		return err
	}
	_, err = bufio.NewReader(conn).ReadSlice('\n')
	return err
}

func callDaemon(c *config, args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := api.Exchange(ctx, c.RunDir, &api.Request{
		Op:         api.OpDel,
		Attachment: api.Attachment{Network: c.Name, ContainerID: args.ContainerID, IfName: args.IfName},
	})
	return err
}
