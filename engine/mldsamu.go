package engine

import (
	"bytes"
	"crypto/sha3"
	"math/bits"
	"sync"
)

// Verification of an ML-DSA signature over a given mu: FIPS 204, algorithm 8
// from step 8 on. No Go library exports it. Everything here is public, so
// nothing needs to take constant time, and it is written to be compared with
// the standard: one function for each algorithm there, plain arithmetic mod q.

const (
	mlN = 256
	mlQ = 8380417
	mlD = 13
)

// mlParams are the columns of FIPS 204, table 1, that verification needs.
type mlParams struct {
	k, l       int
	gamma1Bits int // gamma1 = 2^gamma1Bits
	gamma2     int
	tau        int
	beta       int // tau times eta
	omega      int
	ctilde     int // bytes of the commitment hash, lambda/4
}

var mlTable = [3]mlParams{
	{k: 4, l: 4, gamma1Bits: 17, gamma2: (mlQ - 1) / 88, tau: 39, beta: 78, omega: 80, ctilde: 32},
	{k: 6, l: 5, gamma1Bits: 19, gamma2: (mlQ - 1) / 32, tau: 49, beta: 196, omega: 55, ctilde: 48},
	{k: 8, l: 7, gamma1Bits: 19, gamma2: (mlQ - 1) / 32, tau: 60, beta: 120, omega: 75, ctilde: 64},
}

// mlPoly is a polynomial with coefficients in [0, q), or its NTT.
type mlPoly [mlN]uint32

// verifyMu reports whether sig is a signature over mu by the encoded public
// key, whose length is right for spec.
func verifyMu(spec Spec, public []byte, mu [muSize]byte, sig []byte) bool {
	p := &mlTable[spec-MLDSA44]
	zLen := mlN * (p.gamma1Bits + 1) / 8
	if len(sig) != p.ctilde+p.l*zLen+p.omega+p.k {
		return false
	}
	ctilde, zs, hint := sig[:p.ctilde], sig[p.ctilde:len(sig)-p.omega-p.k], sig[len(sig)-p.omega-p.k:]
	h, ok := mlHints(hint, p)
	if !ok {
		return false
	}
	z := make([]mlPoly, p.l)
	for i := range z {
		if !mlUnpackZ(&z[i], zs[i*zLen:(i+1)*zLen], p) {
			return false
		}
		mlNTT(&z[i])
	}
	var c mlPoly
	mlSampleInBall(&c, ctilde, p.tau)
	mlNTT(&c)

	rho, t1s := public[:32], public[32:]
	hash := sha3.NewSHAKE256()
	hash.Write(mu[:])
	var w, a, t mlPoly
	for i := range p.k {
		// w'[i] = NTT^-1( sum of A[i][j] z[j], minus c t1[i] 2^d )
		mlUnpackT1(&t, t1s[i*320:(i+1)*320])
		mlNTT(&t)
		for n := range w {
			w[n] = mlQ - mlMul(c[n], t[n])
		}
		for j := range p.l {
			mlRejNTT(&a, rho, byte(j), byte(i))
			for n := range w {
				w[n] = uint32((uint64(w[n]) + uint64(a[n])*uint64(z[j][n])) % mlQ)
			}
		}
		mlInverseNTT(&w)
		for n := range w {
			w[n] = mlUseHint(h[i][n], int(w[n]), p.gamma2)
		}
		hash.Write(mlPackW1(&w, p))
	}
	var want [64]byte
	hash.Read(want[:p.ctilde])
	return bytes.Equal(want[:p.ctilde], ctilde)
}

func mlMul(a, b uint32) uint32 { return uint32(uint64(a) * uint64(b) % mlQ) }

// mlZetas are the powers of 1753, a 512th root of unity, in bit-reversed order.
var mlZetas = sync.OnceValue(func() *[mlN]uint32 {
	var z [mlN]uint32
	power := uint32(1)
	for i := range mlN {
		z[bits.Reverse8(uint8(i))] = power
		power = mlMul(power, 1753)
	}
	return &z
})

// mlNTT is algorithm 41.
func mlNTT(w *mlPoly) {
	zetas := mlZetas()
	m := 0
	for length := 128; length >= 1; length /= 2 {
		for start := 0; start < mlN; start += 2 * length {
			m++
			z := zetas[m]
			for j := start; j < start+length; j++ {
				t := mlMul(z, w[j+length])
				w[j+length] = (w[j] + mlQ - t) % mlQ
				w[j] = (w[j] + t) % mlQ
			}
		}
	}
}

// mlInverseNTT is algorithm 42.
func mlInverseNTT(w *mlPoly) {
	zetas := mlZetas()
	m := mlN
	for length := 1; length < mlN; length *= 2 {
		for start := 0; start < mlN; start += 2 * length {
			m--
			z := mlQ - zetas[m]
			for j := start; j < start+length; j++ {
				t := w[j]
				w[j] = (t + w[j+length]) % mlQ
				w[j+length] = mlMul(z, t+mlQ-w[j+length])
			}
		}
	}
	for j := range w {
		w[j] = mlMul(w[j], 8347681) // 256^-1
	}
}

// mlRejNTT is algorithm 30 for the entry of the matrix A in row r, column s.
func mlRejNTT(a *mlPoly, rho []byte, s, r byte) {
	h := sha3.NewSHAKE128()
	h.Write(rho)
	h.Write([]byte{s, r})
	var block [168]byte
	for n := 0; n < mlN; {
		h.Read(block[:])
		for b := block[:]; len(b) > 0 && n < mlN; b = b[3:] {
			if v := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2]&0x7f)<<16; v < mlQ {
				a[n] = v
				n++
			}
		}
	}
}

// mlSampleInBall is algorithm 29.
func mlSampleInBall(c *mlPoly, seed []byte, tau int) {
	h := sha3.NewSHAKE256()
	h.Write(seed)
	var signs [8]byte
	h.Read(signs[:])
	for i := mlN - tau; i < mlN; i++ {
		var j [1]byte
		for h.Read(j[:]); int(j[0]) > i; h.Read(j[:]) {
		}
		c[i] = c[j[0]]
		bit := i + tau - mlN
		c[j[0]] = 1
		if signs[bit/8]>>(bit%8)&1 == 1 {
			c[j[0]] = mlQ - 1
		}
	}
}

// mlBits reads coefficients of width bits, least significant bit first.
func mlBits(b []byte, width int, each func(i int, v uint32)) {
	var acc uint64
	have, at := 0, 0
	for i := range mlN {
		for have < width {
			acc |= uint64(b[at]) << have
			have += 8
			at++
		}
		each(i, uint32(acc)&(1<<width-1))
		acc >>= width
		have -= width
	}
}

// mlUnpackZ reads one polynomial of z, and reports whether its norm is below
// gamma1 - beta.
func mlUnpackZ(z *mlPoly, b []byte, p *mlParams) bool {
	gamma1, ok := 1<<p.gamma1Bits, true
	mlBits(b, p.gamma1Bits+1, func(i int, v uint32) {
		x := gamma1 - int(v)
		if x >= gamma1-p.beta || -x >= gamma1-p.beta {
			ok = false
		}
		z[i] = uint32((x + mlQ) % mlQ)
	})
	return ok
}

// mlUnpackT1 reads one polynomial of t1, times 2^d.
func mlUnpackT1(t *mlPoly, b []byte) {
	mlBits(b, 10, func(i int, v uint32) { t[i] = v << mlD })
}

// mlHints is algorithm 21. An encoding that is not the shortest is refused.
func mlHints(y []byte, p *mlParams) ([][mlN]bool, bool) {
	h := make([][mlN]bool, p.k)
	index := 0
	for i := range h {
		end := int(y[p.omega+i])
		if end < index || end > p.omega {
			return nil, false
		}
		for first := index; index < end; index++ {
			if index > first && y[index-1] >= y[index] {
				return nil, false
			}
			h[i][y[index]] = true
		}
	}
	for ; index < p.omega; index++ {
		if y[index] != 0 {
			return nil, false
		}
	}
	return h, true
}

// mlUseHint is algorithm 40, with algorithm 36 inside.
func mlUseHint(hint bool, r, gamma2 int) uint32 {
	r0 := r % (2 * gamma2)
	if r0 > gamma2 {
		r0 -= 2 * gamma2
	}
	r1 := (r - r0) / (2 * gamma2)
	if r-r0 == mlQ-1 {
		r1 = 0
		r0--
	}
	m := (mlQ - 1) / (2 * gamma2)
	switch {
	case !hint:
	case r0 > 0:
		r1 = (r1 + 1) % m
	default:
		r1 = (r1 + m - 1) % m
	}
	return uint32(r1)
}

// mlPackW1 is one polynomial of algorithm 28.
func mlPackW1(w *mlPoly, p *mlParams) []byte {
	width := 4
	if p.gamma2 == (mlQ-1)/88 {
		width = 6
	}
	out := make([]byte, 0, mlN*width/8)
	var acc uint32
	have := 0
	for _, v := range w {
		acc |= v << have
		for have += width; have >= 8; have -= 8 {
			out = append(out, byte(acc))
			acc >>= 8
		}
	}
	return out
}
