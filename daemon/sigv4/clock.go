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
	if !ok0 || !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || hour > 23 || minute > 59 || second > 59 ||
		month < 1 || month > 12 || day < 1 || day > daysIn(year, month) {
		return 0, false
	}
	return unixDays(year, month, day)*86400 + int64(hour*3600+minute*60+second), true
}

func daysIn(year, month int) int {
	if month == 2 {
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 30 + (month+month/8)%2
}

// unixDays counts the days since 1970 in the proleptic Gregorian calendar; with
// the year starting in March the leap day is its last. time.Date does the same
// in 35 ns, which shows beside a microsecond.
func unixDays(year, month, day int) int64 {
	if month < 3 {
		year, month = year-1, month+12
	}
	y := int64(year)
	return 365*y + floorDiv(y, 4) - floorDiv(y, 100) + floorDiv(y, 400) + int64((153*(month-3)+2)/5+day-1) - 719468
}

// floorDiv rounds down for the one negative year there is, -1.
func floorDiv(a, b int64) int64 { return (a+b)/b - 1 }

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
