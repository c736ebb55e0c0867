// Package kernels runs tests on kernels other than that of the machine: Linux 5.10, 6.1 and 6.12, as Debian builds them
// for clouds. Each boots in an emulated machine (qemu without KVM, so it works anywhere, slowly) from an initramfs that
// the test makes: the modules that are needed, the built programs, test binaries, and a small init.
//
//	fetch_test.go      gets a kernel, once; it stays in bin/kernels
//	initramfs_test.go  makes the guest's file system
//	kernels_test.go    boots it and reads the serial console
//	init               the guest's first process
//	guest              what is tested there and nowhere else
//
// Beside guest, the tests of the packages that deal with the kernel run, but for some; kernels_test.go says which and why.
//
// `make e2e-kernels` runs it all and prints what each kernel has been found to offer. A part of it, of a minute or so:
//
//	make e2e-kernels TESTFLAGS='-run /6.1$ -guest.run=TestDeclared'
package kernels
