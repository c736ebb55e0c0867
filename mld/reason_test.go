package mld_test

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

func TestReasons(t *testing.T) {
	label := regexp.MustCompile(`^[a-z][a-z_]*$`)
	seen := map[string]mld.Reason{}
	for r := range mld.Reasons() {
		if int(r) >= mld.NumReasons {
			t.Errorf("reason %d does not fit into an array of NumReasons", r)
		}
		if !label.MatchString(r.String()) {
			t.Errorf("reason %d: label %q is not fit for a metric", r, r.String())
		}
		for _, s := range []string{r.String(), r.Error()} {
			if other, ok := seen[s]; ok {
				t.Errorf("reasons %d and %d are both %q", r, other, s)
			}
			seen[s] = r
		}
		if len(r.Error()) < 10 {
			t.Errorf("reason %d: %q says nothing", r, r.Error())
		}
	}
	if n := len(slices.Collect(mld.Reasons())); n != mld.NumReasons-1 {
		t.Errorf("%d reasons, want %d", n, mld.NumReasons-1)
	}
	diff(t, []string{"none", "unknown", "unknown"},
		[]string{mld.Reason(0).String(), mld.Reason(mld.NumReasons).String(), mld.Reason(255).String()})
}

func TestReasonOf(t *testing.T) {
	tests := []struct {
		err  error
		want mld.Reason
	}{
		{nil, 0},
		{errors.New("another"), 0},
		{mld.ReasonChecksum, mld.ReasonChecksum},
		{fmt.Errorf("link: %w", mld.ReasonHopLimit), mld.ReasonHopLimit},
	}
	for _, tt := range tests {
		if got := mld.ReasonOf(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		mld.TypeQuery.String(): "Query", mld.TypeReport.String(): "Report", mld.TypeDone.String(): "Done",
		mld.TypeReportV2.String(): "ReportV2", mld.Type(7).String(): "7",
		mld.ModeIsInclude.String(): "IS_IN", mld.ModeIsExclude.String(): "IS_EX", mld.ChangeToInclude.String(): "TO_IN",
		mld.ChangeToExclude.String(): "TO_EX", mld.AllowNewSources.String(): "ALLOW",
		mld.BlockOldSources.String(): "BLOCK", mld.RecordType(0).String(): "0",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
