package frontend

import "math/rand/v2"

// Shape is one direction of a request before it is cut into segments: lengths in bytes of the FUSE header, of the arguments
// and of the file data.
type Shape struct{ Header, Args, Data int }

// Total is the length of all parts.
func (s Shape) Total() int { return s.Header + s.Args + s.Data }

// Framing cuts a direction of a request into segment lengths. Devices have to accept any (virtio 1.2, section 2.7.4.1).
type Framing func(Shape) []int

// LinuxFraming is how Linux's driver does it (fs/fuse/virtio_fs.c): the header alone, all arguments together, the data in pages.
func LinuxFraming(s Shape) []int {
	cut := append([]int(nil), s.Header)
	if s.Args > 0 {
		cut = append(cut, s.Args)
	}
	return appendCut(cut, s.Data, PageSize)
}

// WholeFraming puts everything into one segment.
func WholeFraming(s Shape) []int { return []int{s.Total()} }

// CutFraming makes segments of n bytes, across all parts.
func CutFraming(n int) Framing {
	return func(s Shape) []int { return appendCut(nil, s.Total(), n) }
}

// ZeroFraming is Linux's with empty segments in between.
func ZeroFraming(s Shape) []int {
	var cut []int
	for _, n := range LinuxFraming(s) {
		cut = append(cut, 0, n)
	}
	return append(cut, 0)
}

// RandomFraming cuts at random places, into at most limit segments.
func RandomFraming(rng *rand.Rand, limit int) Framing {
	return func(s Shape) []int {
		var cut []int
		left := s.Total()
		for left > 0 && len(cut) < limit-1 {
			n := 1 + rng.IntN(left)
			if rng.IntN(3) == 0 {
				n = min(left, 1+rng.IntN(64))
			}
			cut = append(cut, n)
			left -= n
		}
		if left > 0 {
			cut = append(cut, left)
		}
		return cut
	}
}

func appendCut(cut []int, n, size int) []int {
	for n > 0 {
		c := min(n, size)
		cut = append(cut, c)
		n -= c
	}
	return cut
}
