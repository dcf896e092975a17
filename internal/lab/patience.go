package lab

import (
	"os"
	"strconv"
	"time"
)

// patienceVar holds by how much this machine is slower than those that the lab's deadlines are meant for, as one with an emulated CPU is.
const patienceVar = "MUSLIN_PATIENCE"

// patient stretches a deadline by what patienceVar says.
func patient(d time.Duration) time.Duration {
	if factor, err := strconv.Atoi(os.Getenv(patienceVar)); err == nil && factor > 1 {
		return time.Duration(factor) * d
	}
	return d
}
