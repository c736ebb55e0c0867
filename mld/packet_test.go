package mld_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// What every test here calls these, in captures and in packets made by hand.
var (
	unspecified = netip.IPv6Unspecified()
	host        = netip.MustParseAddr("fe80::ff:fe00:a")
	querier     = netip.MustParseAddr("fe80::ff:fe00:1")
	solicited   = netip.MustParseAddr("ff02::1:ff00:a")
	group       = netip.MustParseAddr("ff05::4321")
	ssmGroup    = netip.MustParseAddr("ff3e::8000:1")
)

func addrs(s ...string) []netip.Addr {
	var list []netip.Addr
	for _, a := range s {
		list = append(list, netip.MustParseAddr(a))
	}
	return list
}

// message is a mld.Message that can be compared.
type message struct {
	Type             mld.Type
	Version          mld.Version
	MulticastAddress netip.Addr
	MaxResponseCode  uint16
	S                bool
	QRV, QQIC        uint8
	Sources          []netip.Addr
	Records          []mld.Record
}

func plain(m mld.Message) message {
	p := message{
		Type: m.Type, Version: m.Version, MulticastAddress: m.MulticastAddress, MaxResponseCode: m.MaxResponseCode,
		S: m.SuppressRouterProcessing, QRV: m.QRV, QQIC: m.QQIC, Sources: slices.Collect(m.Sources.All()),
	}
	for r := range m.Records.All() {
		p.Records = append(p.Records, mld.Record{
			Type: r.Type, MulticastAddress: r.MulticastAddress, Sources: slices.Collect(r.Sources.All()),
		})
	}
	return p
}

// encode is the Append function for the message.
func (m message) encode(src, dst netip.Addr) []byte {
	switch m.Type {
	case mld.TypeReport:
		return mld.AppendReport(nil, src, m.MulticastAddress)
	case mld.TypeDone:
		return mld.AppendDone(nil, src, m.MulticastAddress)
	case mld.TypeReportV2:
		return mld.AppendReportV2(nil, src, m.Records)
	}
	return mld.AppendQuery(nil, src, dst, mld.Query{
		Version: m.Version, MulticastAddress: m.MulticastAddress, MaxResponseCode: m.MaxResponseCode,
		SuppressRouterProcessing: m.S, QRV: m.QRV, QQIC: m.QQIC, Sources: m.Sources,
	})
}

var equateAddrs = cmpopts.EquateComparable(netip.Addr{})

func diff(t *testing.T, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got, equateAddrs, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// frames returns the Ethernet frames in a file of testdata.
func frames(tb testing.TB, name string) [][]byte {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	var list [][]byte
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
			continue
		}
		frame, err := hex.AppendDecode(nil, line)
		if err != nil {
			tb.Fatalf("testdata/%s: %v", name, err)
		}
		list = append(list, frame)
	}
	return list
}

const ethernetLen = 14

// goldenPackets returns the IPv6 packets of all captured frames.
func goldenPackets(tb testing.TB) [][]byte {
	tb.Helper()
	names, err := filepath.Glob("testdata/*.hex")
	if err != nil || len(names) == 0 {
		tb.Fatalf("testdata/*.hex: %d files, error %v", len(names), err)
	}
	var list [][]byte
	for _, name := range names {
		for _, f := range frames(tb, filepath.Base(name)) {
			list = append(list, f[ethernetLen:])
		}
	}
	return list
}

// Hop-by-Hop Options headers as others send them. The first octet is the next header.
var (
	linuxOptions  = []byte{58, 0, 5, 2, 0, 0, 1, 0} // Router Alert, PadN
	bridgeOptions = []byte{58, 0, 5, 2, 0, 0, 0, 0} // Router Alert, two Pad1
	kameOptions   = []byte{58, 0, 1, 0, 5, 2, 0, 0} // PadN, Router Alert
)

// packet puts an IPv6 packet together by hand, with a Hop Limit of 1 and a right checksum. next is the Next
// Header of the IPv6 header; extensions stand before the message as they are.
func packet(src string, next uint8, extensions, message []byte) []byte {
	p := make([]byte, 8, 40+len(extensions)+len(message))
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(len(extensions)+len(message)))
	p[6], p[7] = next, 1
	p = append(p, netip.MustParseAddr(src).AsSlice()...)
	p = append(p, mld.AllNodes.AsSlice()...)
	p = append(p, extensions...)
	p = append(p, message...)
	if len(message) >= 4 {
		m := p[40+len(extensions):]
		m[2], m[3] = 0, 0
		binary.BigEndian.PutUint16(m[2:], ^onesComplementSum(p[8:40], m))
	}
	return p
}

// onesComplementSum is the sum of RFC 4443 section 2.3 word by word, to hold the fast one against.
func onesComplementSum(addrs, message []byte) uint16 {
	b := slices.Concat(addrs, binary.BigEndian.AppendUint32(nil, uint32(len(message))), []byte{0, 0, 0, 58}, message)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// v1 is a message of 24 octets.
func v1(t mld.Type, delay uint16, group string) []byte {
	b := []byte{byte(t), 0, 0, 0, byte(delay >> 8), byte(delay), 0, 0}
	return append(b, netip.MustParseAddr(group).AsSlice()...)
}

// queryV2 is a version 2 Query that counts n sources and holds those given, whatever n is.
func queryV2(group string, n uint16, sources ...string) []byte {
	b := append(v1(mld.TypeQuery, 1000, group), 2, 125, byte(n>>8), byte(n))
	for _, s := range sources {
		b = append(b, netip.MustParseAddr(s).AsSlice()...)
	}
	return b
}

// reportV2 is a version 2 Report that counts n records and holds those given, whatever n is.
func reportV2(n uint16, records ...[]byte) []byte {
	return slices.Concat(append([][]byte{{143, 0, 0, 0, 0, 0, byte(n >> 8), byte(n)}}, records...)...)
}

// record counts n sources and aux words of auxiliary data; rest is what comes after the multicast address.
func record(t mld.RecordType, aux uint8, n uint16, group string, rest ...byte) []byte {
	b := append([]byte{byte(t), aux, byte(n >> 8), byte(n)}, netip.MustParseAddr(group).AsSlice()...)
	return append(b, rest...)
}

func octets(addr string) []byte { return netip.MustParseAddr(addr).AsSlice() }
