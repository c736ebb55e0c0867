package listener

import "slices"

// A slab is a growing array in pieces of a fixed size, so that no single addition has to copy all that is there.
// Only the first piece starts small and moves while it grows: most listeners have a handful of addresses. What
// points into a slab is good until the next push.
type slab[T any] struct {
	pieces [][]T
	len    uint32
}

const pieceSize = 1024

func (s *slab[T]) at(i uint32) *T { return &s.pieces[i/pieceSize][i%pieceSize] }

// rest returns the elements from i on that lie in the same piece.
func (s *slab[T]) rest(i uint32) []T { return s.pieces[i/pieceSize][i%pieceSize:] }

func (s *slab[T]) push(v T) {
	piece := int(s.len) / pieceSize
	if piece == len(s.pieces) {
		s.pieces = append(s.pieces, newPiece[T](piece == 0))
	}
	s.pieces[piece] = append(s.pieces[piece], v)
	s.len++
}

// pop takes the last element away. One empty piece is kept, so that going back and forth allocates nothing.
func (s *slab[T]) pop() T {
	s.len--
	last := &s.pieces[s.len/pieceSize]
	v := (*last)[s.len%pieceSize]
	*last = (*last)[:s.len%pieceSize]
	if spare := int(s.len)/pieceSize + 2; spare < len(s.pieces) {
		s.pieces[spare] = nil
		s.pieces = s.pieces[:spare]
	}
	return v
}

func newPiece[T any](first bool) []T {
	if first {
		return make([]T, 0, 8)
	}
	return make([]T, 0, pieceSize)
}

// queue is a first-in, first-out queue made of pieces like a slab.
type queue[T any] struct {
	pieces [][]T
	head   int // the first element, in the first piece
	len    int
}

func (q *queue[T]) push(v T) {
	piece := (q.head + q.len) / pieceSize
	if piece == len(q.pieces) {
		q.pieces = append(q.pieces, newPiece[T](piece == 0))
	}
	q.pieces[piece] = append(q.pieces[piece], v)
	q.len++
}

func (q *queue[T]) pop() (v T, ok bool) {
	if q.len == 0 {
		return v, false
	}
	v = q.pieces[0][q.head]
	q.head++
	q.len--
	switch {
	case q.len == 0: // a queue that is drained now and then stays in its first piece
		q.pieces[0] = q.pieces[0][:0]
		q.head = 0
	case q.head == pieceSize:
		empty := q.pieces[0][:0]
		q.pieces = slices.Delete(q.pieces, 0, 1)
		q.head = 0
		if len(q.pieces)*pieceSize < q.len+pieceSize { // one spare piece is kept
			q.pieces = append(q.pieces, empty)
		}
	}
	return v, true
}
