package main

import (
	"fmt"
	"runtime"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

var (
	sizes    = []int{100, 10_000, 1_000_000}
	versions = []mld.Version{mld.Version1, mld.Version2}
	querier  = own.Next()
)

// peerSize is the largest number of addresses that gVisor is asked for, and the one that the goals are for.
const peerSize = 10_000

// roundsOf is how many rounds there are with n addresses. With more than the peer is asked for they are long.
func roundsOf(n, rounds int) int {
	if n > peerSize {
		return min(rounds, 3)
	}
	return rounds
}

// startListening measures joins.
func startListening(version mld.Version, n, rounds int) []*line {
	what := fmt.Sprintf("start listening, MLDv%d, %d addresses", version, n)
	ns := &line{what: what, unit: "ns"}
	allocations := &line{what: what, unit: "allocations", goal: goal{most: 1}}
	bytes := &line{what: what, unit: "B allocated"}
	if n == peerSize {
		ns.goal.ratio = 1. / 6
	}
	listeners := max(1, peerSize/n) // a round has at least so many joins
	for range roundsOf(n, rounds) {
		list := addresses(n)
		nodes := make([]*node, listeners)
		for i := range nodes {
			nodes[i] = newNode(version)
		}
		c := measure(listeners*n, func() {
			for _, node := range nodes {
				node.listen(list)
			}
		})
		ns.ours = append(ns.ours, c.ns)
		allocations.ours = append(allocations.ours, c.allocations)
		bytes.ours = append(bytes.ours, c.bytes)
		runtime.KeepAlive(nodes)
		if n > peerSize {
			continue
		}

		peerList := tcpipAddresses(n)
		stacks := make([]*gvisor, listeners)
		for i := range stacks {
			stacks[i] = newGvisor(version, 8)
		}
		c = measure(listeners*n, func() {
			for _, stack := range stacks {
				stack.listen(peerList)
			}
		})
		ns.peer = append(ns.peer, c.ns)
		allocations.peer = append(allocations.peer, c.allocations)
		bytes.peer = append(bytes.peer, c.bytes)
		for _, stack := range stacks {
			stack.close()
		}
	}
	return []*line{ns, allocations, bytes}
}

// answerAndMemory measures the answer to a General Query, and before it the memory of addresses that are idle.
func answerAndMemory(version mld.Version, n, rounds int) []*line {
	what := fmt.Sprintf("memory, MLDv%d, %d addresses", version, n)
	memory := &line{what: what, unit: "B", goal: goal{most: 80}}
	if n < peerSize {
		memory.goal = goal{} // here the empty listener weighs
	}
	what = fmt.Sprintf("answer a general query, MLDv%d, %d addresses", version, n)
	ns := &line{what: what, unit: "ns"}
	switch {
	case n != peerSize:
	case version == mld.Version1:
		ns.goal.ratio = 1. / 8
	default:
		ns.goal.ratio = 1. / 20
	}
	allocations := &line{what: what, unit: "allocations", goal: goal{most: 0.01}}

	query := mld.AppendQuery(nil, querier, mld.AllNodes, mld.Query{Version: version, MaxResponseCode: 10000, QRV: 2})
	list := addresses(n)
	grown, ours := kept(func() *node {
		node := newNode(version)
		node.listen(list)
		node.rest()
		return node
	})
	memory.ours = []float64{grown / float64(n)}
	var peer *gvisor
	if n <= peerSize {
		peerList := tcpipAddresses(n)
		stack := newGvisor(version, n+8)
		stack.rest()
		grown, peer = kept(func() *gvisor {
			stack.listen(peerList)
			stack.rest()
			return stack
		})
		memory.peer = []float64{grown / float64(n)}
		peer.answer(query)
		if got := peer.taken(); got != n+1 { // and its own solicited-node address
			panic(fmt.Sprintf("gvisor: has answered for %d addresses, want %d", got, n+1))
		}
	}
	queries := max(1, 10*peerSize/n) // a round has at least so many answers
	for range roundsOf(n, rounds) {
		c := measure(queries*n, func() {
			for range queries {
				if got := ours.answer(query); got != n {
					panic(fmt.Sprintf("the answer has %d addresses, want %d", got, n))
				}
			}
		})
		ns.ours = append(ns.ours, c.ns)
		allocations.ours = append(allocations.ours, c.allocations)
		if peer == nil {
			continue
		}
		c = measure(queries*n, func() {
			for range queries {
				peer.answer(query)
				if peer.link.Drain() == 0 {
					panic("gvisor: no answer")
				}
			}
		})
		ns.peer = append(ns.peer, c.ns)
		allocations.peer = append(allocations.peer, c.allocations)
	}
	if peer != nil {
		peer.close()
	}
	runtime.KeepAlive(ours)
	return []*line{memory, ns, allocations}
}
