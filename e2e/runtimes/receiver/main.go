// Receiver is the one program of the containers' image: an application that binds a UDP port and joins nothing. It
// prints the destination of each datagram, a line each. Without a port it only waits, as a pod's sandbox does.
package main

import (
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/net/ipv6"
)

func main() {
	if len(os.Args) < 2 {
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM)
		<-end
		return
	}
	conn, err := net.ListenPacket("udp6", "[::]:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	p := ipv6.NewPacketConn(conn)
	if err := p.SetControlMessage(ipv6.FlagDst, true); err != nil {
		log.Fatal(err)
	}
	fmt.Println("bound")
	for buf := make([]byte, 1<<16); ; {
		_, cm, _, err := p.ReadFrom(buf)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(cm.Dst)
	}
}
