package agent

// poke tells whoever receives from c, which holds one value, that there is something new. It does not wait: who has not received the last one has yet to look.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
