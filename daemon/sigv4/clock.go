package sigv4

import (
	"time"
)

// MaxSkew is how far X-Amz-Date may be from the server's clock, either way.
const MaxSkew = 5 * time.Minute

const timeFormat = "20060102T150405Z"

// parseTime reads yyyymmddThhmmssZ as Unix seconds. Only real dates and times
// of day pass; a leap second does not.
func parseTime(b []byte) (int64, bool) {
	if len(b) != len(timeFormat) || b[8] != 'T' || b[15] != 'Z' {
		return 0, false
	}
	year, ok0 := digits(b[0:4])
	month, ok1 := digits(b[4:6])
	day, ok2 := digits(b[6:8])
	hour, ok3 := digits(b[9:11])
	minute, ok4 := digits(b[11:13])
	second, ok5 := digits(b[13:15])
	if !ok0 || !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	// time.Date normalises: the 31st of April becomes the 1st of May.
	if t.Day() != day || t.Month() != time.Month(month) {
		return 0, false
	}
	return t.Unix(), true
}

func digits(b []byte) (n int, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

func formatTime(unix int64) string { return time.Unix(unix, 0).UTC().Format(timeFormat) }
