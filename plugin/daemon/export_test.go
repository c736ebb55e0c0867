package daemon

import "time"

// AdoptWithin is before Serve, and shortens for how long listeners are tried to be started again.
func (d *Daemon) AdoptWithin(t time.Duration) { d.adopting = t }
