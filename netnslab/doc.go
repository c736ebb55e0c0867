// Package netnslab makes small networks out of Linux network namespaces for tests: containers, a host, bridges
// that snoop on multicast, captures, and waiting without sleeping. It knows nothing of a listener of our own and
// can be used for any test of IPv6 multicast on real kernel paths.
//
//	      host ┌───────────────────────────────────────────┐
//	           │            br0  02:00:00:00:00:01         │  a bridge, its querier an option
//	           │        ┌────┴────┐                        │
//	           │      alice      bob                       │  ports, named after the nodes
//	           └────────┼─────────┼────────────────────────┘
//	                    │ veth    │ veth
//	              ┌─────┴─────┐ ┌─┴─────────┐
//	        alice │   eth0    │ │   eth0    │ bob             nodes: a namespace each
//	              └───────────┘ └───────────┘
//	02:00:00:00:01:01                       02:00:00:00:02:01  node, endpoint: fe80::ff:fe00:101, …:201
//
// A test says what it needs and what it expects:
//
//	func TestMain(m *testing.M) { netnslab.Main(m) }
//
//	func TestJoin(t *testing.T) {
//		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
//		defer cancel()
//		lab := netnslab.New(t)
//		br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2})
//		alice := br.Connect(lab.Node("alice"), "eth0")
//		bob := br.Connect(lab.Node("bob"), "eth0")
//		group := netip.MustParseAddr("ff05::4321")
//
//		frames := alice.Capture(netnslab.MLD)
//		alice.Join(group) // as an application does
//		frames.Wait(time.Second, "report", func(f netnslab.Frame) bool { return f.ICMPv6() == 143 })
//
//		br.WaitQuerying(ctx)                                  // it floods no longer
//		if err := alice.Port().Wait(ctx, group); err != nil { // it has heard the report
//			t.Fatal(err)
//		}
//		datagrams := alice.Receive(5353)
//		bob.Send(group, 5353, []byte("who is there?"), 3)
//		datagrams.Wait(group, 3)
//	}
//
// # What a lab promises
//
// It needs no privilege and touches nothing: [Main] runs the tests in a user and network namespace of their own, and
// each lab has its own host, so tests run in parallel. Namespaces are held by descriptors, without names or mounts,
// and end with the test, or with the process if that dies.
//
// Methods fail the test instead of returning an error. What they wait for has a ceiling; none of them sleeps for
// something to happen. Addresses follow from the order of nodes and endpoints, so captures of two runs can be
// compared. There is no duplicate address detection (see [DAD]) and no router solicitation, so that the only traffic
// is what the test makes, and MLD.
//
// When a test fails its captures and the state of every node stay in a directory that the log names, and the log says
// whether the machine has dropped frames meanwhile: all namespaces share the queue that every veth's frames pass, and a
// flood in one takes those of others. When it passes, nothing stays. What tests leave open fails the run.
//
// With LAB_REQUIRED=1 in the environment a test that would be skipped fails.
//
// # Silence
//
// That something does not arrive is proved by something that is sent afterwards and does: see [Receiver.Count]. And
// a bridge keeps a group away from those who do not want it only while there is a querier: see [Bridge.WaitQuerying].
package netnslab
