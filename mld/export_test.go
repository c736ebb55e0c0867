package mld

// Checksum is for the benchmark's floor, which has to use the same sum.
var Checksum = checksum
