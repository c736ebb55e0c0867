package netns

// WithoutCookies pretends that the kernel has no cookies until restore is called.
func WithoutCookies() (restore func()) {
	real := cookieOption
	cookieOption = 1 << 20
	return func() { cookieOption = real }
}

// Numbers is how many namespaces have a number in place of a cookie.
func Numbers() int {
	numbers.Lock()
	defer numbers.Unlock()
	return len(numbers.held)
}
