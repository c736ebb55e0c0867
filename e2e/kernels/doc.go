// Package kernels runs tests on kernels other than that of the machine: Linux 5.10, 6.1 and 6.12, as Debian builds them
// for clouds. Each boots in an emulated machine (qemu without KVM, so it works anywhere, slowly) from an initramfs that
// the test makes: the modules that are needed, the built programs, test binaries, and a small init.
//
//	fetch_test.go    gets a kernel, once; it stays in bin/kernels
//	initramfs_test.go  makes the guest's file system
//	kernels_test.go  boots it and reads the serial console
//	init             the guest's first process
//	guest            what is tested there and nowhere else
//
// `make e2e-kernels` runs it and prints what each kernel offers.
package kernels
