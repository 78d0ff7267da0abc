package engine

// # Keys that wait
//
// A token or an external key manager computes outside of this process, and Do
// must not wait for it. Such a key looks, in Do, at each operation as far as it
// needs nothing from outside (usage, algorithm, length, whose blob it is); what
// passes gets ErrPending. Warm then carries these operations out and sets Out,
// Material and Err, as Do would have:
//
//	Do      checks, ErrPending for all that is worth a call elsewhere
//	Warm    carries out those that are ErrPending, all of the batch at once;
//	        nil when each of them has its final Err
//
// So for any key: an operation that is still ErrPending after Warm is worth
// another Do (a local key has only loaded its material); one that is not is
// finished, and Do on it would begin it anew. Errors that concern one operation
// are its Err, as in Do, with what the other side said in it; Warm's own error
// means that nothing can be said of any of them.
//
// Class is Token for all that waits. Purge forgets what is in this process;
// what is under way elsewhere may finish.

// await is Do of a key that waits.
func await(ops []Op, check func(*Op) error) {
	for i := range ops {
		op := &ops[i]
		op.Out = op.Out[:0]
		if op.Err = check(op); op.Err == nil {
			op.Err = ErrPending
		}
	}
}
