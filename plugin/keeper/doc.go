// Package keeper is the part of mldd that stays: it holds the run directory's socket and lock.
package keeper
