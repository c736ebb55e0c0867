package listener

// A slab is a growing array in pieces of a fixed size, so that no single addition has to copy all that is there.
// Only the first piece starts small and moves while it grows: most listeners have a handful of addresses. What
// points into a slab is good until the next push.
type slab[T any] struct {
	pieces [][]T
	len    uint32
}

const pieceSize = 1024

func (s *slab[T]) at(i uint32) *T { return &s.pieces[i/pieceSize][i%pieceSize] }

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
		return nil
	}
	return make([]T, 0, pieceSize)
}
