package vmmtest

import "testing"

func TestFake(t *testing.T) {
	Run(t, func(t *testing.T) Fixture { return FakeFixture(t) })
}
