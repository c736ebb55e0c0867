package netns

// WithoutCookies pretends that the kernel has no cookies until restore is called.
func WithoutCookies() (restore func()) {
	real := cookieOption
	cookieOption = 1 << 20
	return func() { cookieOption = real }
}
