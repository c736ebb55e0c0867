//go:build race

package listener_test

func init() { many = 50_000 } // everything takes ten times as long
