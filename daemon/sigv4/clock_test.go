package sigv4_test

import (
	"fmt"
	"testing"
	"time"

	"keymill/daemon/sigv4"
)

// The edges of every month, in years around all the rules on leap years, against
// the time package.
func TestParseTime(t *testing.T) {
	for year := range 10000 {
		if year > 8 && year < 9990 && (year < 1895 || year > 2105) && year%100 > 0 {
			continue
		}
		for month := range 14 {
			// The first and last days of a month, and what lies beyond.
			for _, day := range []int{0, 1, 15, 28, 29, 30, 31, 32} {
				s := fmt.Sprintf("%04d%02d%02dT%02d%02d%02dZ", year, month, day, year%24, (year+day)%60, month)
				got, ok := sigv4.ParseTime(s)
				want, err := time.Parse("20060102T150405Z", s)
				if ok != (err == nil) || ok && got != want.Unix() {
					t.Fatalf("%s: %d, %v; want %v, %v", s, got, ok, want, err)
				}
			}
		}
	}
	for _, s := range []string{"", "20260228T235930", "20260228T235930z", "20260228t235930Z", "20260228T235930ZZ", "20260228T245930Z", "20260228T236030Z",
		"20260228T235960Z", "2026-228T235930Z", "+0260228T235930Z", "20260228 235930Z", "20260228T23593\x00Z", "20260230T000000Z"} {
		if _, ok := sigv4.ParseTime(s); ok {
			t.Errorf("%q passed", s)
		}
	}
}
