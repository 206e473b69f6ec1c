package bench

import (
	"context"
	"fmt"
	"time"

	fe "virtiofsd/harness/frontend"
)

// Reply is one start of a daemon up to its answer to INIT, the first that a guest waits for.
type Reply struct {
	Queues int     `json:"queues"` // request queues that were set up
	Daemon string  `json:"daemon"`
	Round  int     `json:"round"`
	MS     float64 `json:"ms"` // from exec
	Bad    string  `json:"error,omitempty"`
}

// replyQueues are the numbers of request queues with which the first reply is measured.
var replyQueues = []int{1, 2, 4, 16, 64}

// FirstReplies measures how long daemons take from exec to their first reply, by the number of
// request queues. The front-end connects the moment that the socket is there and waits for no
// longer than each answer takes, so what a machine's start would hide is seen.
func FirstReplies(ctx context.Context, o Options) (*Report, error) {
	b, r, err := newBed(o)
	if err != nil {
		return nil, err
	}
	defer b.close()
	r.Rounds = b.Rounds
	for round := range b.Rounds {
		began := time.Now()
		for n, queues := range replyQueues {
			for i := range b.Daemons {
				r.Replies = append(r.Replies, b.reply(ctx, b.Daemons[(i+n+round)%len(b.Daemons)], round, queues))
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
		b.Progress(fmt.Sprintf("first replies: round %d of %d: %.1f s", round+1, b.Rounds, time.Since(began).Seconds()))
	}
	return r, nil
}

func (b *bed) reply(ctx context.Context, d fe.Daemon, round, queues int) Reply {
	r := Reply{Queues: queues, Daemon: d.Name, Round: round}
	s, err := b.begin(ctx, d, queues)
	if err != nil {
		r.Bad = err.Error()
		return r
	}
	r.MS = float64(time.Since(s.proc.Start)) / 1e6
	s.end()
	return r
}

// ReplyTable is the table of how long each daemon takes to its first reply, a row for each number
// of queues: medians of the rounds. The first row is the head.
func (r *Report) ReplyTable() [][]string {
	daemons := r.with(func(yield func(string)) {
		for _, p := range r.Replies {
			yield(p.Daemon)
		}
	})
	rows := [][]string{append([]string{"first reply after, ms"}, daemons...)}
	for _, queues := range replyQueues {
		row := []string{fmt.Sprintf("%d queues", queues)}
		if queues == 1 {
			row[0] = "1 queue"
		}
		there := false
		for _, d := range daemons {
			var v []float64
			for _, p := range r.Replies {
				if p.Queues == queues && p.Daemon == d {
					there = true
					if p.Bad == "" {
						v = append(v, p.MS)
					}
				}
			}
			if len(v) > 0 {
				row = append(row, fmt.Sprintf("%.1f", stat(v).Center))
			} else {
				row = append(row, "-")
			}
		}
		if there {
			rows = append(rows, row)
		}
	}
	return rows
}
