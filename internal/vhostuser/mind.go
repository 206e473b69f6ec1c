package vhostuser

// What comes on the high-priority queue is mostly FORGET, right after a request of another queue: of UNLINK, say. To wake that queue's leader
// up for it takes longer than all of the requests before it did, and often takes a processor from one who works. So a leader that polls its
// own queue minds the high-priority queue as well, while that one's leader sleeps: the driver is asked for no kicks, and what comes is served
// by the one who sees it. It minds until it goes to sleep itself, has more to do than one request at a time, or is found to be blocked.
//
// Locks are taken in this order: a request queue's, then the high-priority queue's.

// deputyMost is how many requests of the high-priority queue are served before the own queue is looked at again.
const deputyMost = 8

// mind begins to mind the high-priority queue, if its leader sleeps and nobody else does. The caller holds its own queue's mu.
func (w *worker) mind() {
	d := w.q.dev
	h := d.queues[0]
	if w.q == h || d.minder.Load() != nil || !h.mu.TryLock() {
		return
	}
	if d.minder.Load() == nil && h.asleep && !h.kickless && h.running() && h.hush() == nil {
		d.minder.Store(w)
	}
	h.mu.Unlock()
}

// giveBack ends that: kicks go to the high-priority queue's own leader again. The caller holds mu of w's queue.
func (w *worker) giveBack() {
	d := w.q.dev
	if d.minder.Load() != w {
		return
	}
	h := d.queues[0]
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.minder.Load() != w { // its leader was woken up meanwhile
		return
	}
	d.minder.Store(nil)
	if !h.running() {
		return
	}
	if more, err := h.listen(); more || err != nil {
		ring(h.wake, 1)
	}
}

// deputize serves what waits in the high-priority queue, if w minds it, and reports whether there was anything. The caller holds mu of w's
// queue, before and after.
func (w *worker) deputize() bool {
	if w.q.dev.minder.Load() != w {
		return false
	}
	q, h := w.q, w.q.dev.queues[0]
	if !h.mu.TryLock() {
		return false
	}
	if h.dev.minder.Load() != w || !h.running() {
		h.mu.Unlock()
		return false
	}
	if n, err := h.pending(); n == 0 && err == nil {
		h.mu.Unlock()
		return false
	}
	w.leave(nil) // who is blocked here is blocked as a leader
	q.mu.Unlock()

	d := w.deputy
	if d == nil {
		d = &worker{q: h, handler: w.handler, bound: true, tid: w.tid}
		w.deputy = d
	}
	d.quota = deputyMost
	h.workers[d] = struct{}{}
	h.active++
	var out aftermath
	head, ok := d.turn(false, 0, 0, &out)
	for ok || out.any() {
		if ok {
			used := d.one(head, &out)
			d.quota--
			head, ok = d.turn(true, head, used, &out)
			continue
		}
		d.settle(&out)
	}
	h.active--
	delete(h.workers, d)
	h.staff() // who ended meanwhile may have counted on it
	h.still.Broadcast()
	h.mu.Unlock()

	q.mu.Lock()
	w.back()
	w.unfit = w.unfit || d.unfit
	return true
}
