// Command mldctl is the operator's tool: it shows what mldd knows and does, and attaches interfaces that no CNI runtime
// manages. What it can do is in package command.
package main
