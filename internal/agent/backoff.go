package agent

import "time"

// The waits between two tries: the first, and what they grow to.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// backoff spaces retries. The zero value has nothing to retry.
type backoff struct {
	wait  time.Duration
	timer <-chan time.Time // nil: none is set
}

// next sets a retry, later each time. One that is set already stays: a failure between, for another reason, does not put it off.
func (b *backoff) next() {
	if b.timer != nil {
		return
	}
	b.wait = min(max(2*b.wait, firstRetry), lastRetry)
	b.timer = time.After(b.wait)
}

// fired is called after due has received.
func (b *backoff) fired() { b.timer = nil }

func (b *backoff) reset() { *b = backoff{} }

// due is nil, and so never ready, when there is nothing to retry.
func (b *backoff) due() <-chan time.Time { return b.timer }
