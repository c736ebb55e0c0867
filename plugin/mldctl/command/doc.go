// Package command is the commands of mldctl, each in a file of its own, apart from package main so that the manual pages
// can be made of them.
//
// A command asks mldd by package api and prints what it answers: tables for people, and with --json what api documents
// for programs. Results go to standard output, and everything else to standard error.
package command
