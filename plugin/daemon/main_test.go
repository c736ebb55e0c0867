package daemon_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// strangerEnv makes the test binary a client of another user, which dials this socket.
const strangerEnv = "DAEMON_TEST_STRANGER"

func TestMain(m *testing.M) {
	if path := os.Getenv(strangerEnv); path != "" {
		stranger(path)
	}
	netnslab.Main(m)
}

// stranger asks for the status and prints what comes back.
func stranger(path string) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		fmt.Println("not connected:", err)
		os.Exit(1)
	}
	fmt.Fprintln(conn, `{"v":1,"op":"status"}`)
	answer := make([]byte, 100)
	n, err := conn.Read(answer)
	fmt.Printf("answer %q, %v\n", answer[:n], err)
	os.Exit(0)
}
