package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "example.com/trunks/siptrunkv1"
)

const (
	silenceMax    = 45 * time.Second // the server says something every 15 s
	watchPauseMin = 200 * time.Millisecond
	watchPauseMax = 10 * time.Second
)

var noUse = []codes.Code{
	codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented,
}

// follower has the trunks as they are, and the token of how far that is.
type follower struct {
	trunks map[string]*pb.SipTrunk
	token  string
	pause  time.Duration
}

// follow goes on for ever; it ends with an error that trying again does not help.
func (f *follower) follow(ctx context.Context, client pb.SipTrunkServiceClient) error {
	for {
		err := f.stream(ctx, client)
		code := status.Code(err)
		if ctx.Err() != nil || slices.Contains(noUse, code) {
			return err
		}
		if code == codes.OutOfRange {
			f.token = "" // start with the initial state again
		}
		wait, _ := retryDelay(err)
		fmt.Printf("%s %s: go on\n", code, reason(err))
		time.Sleep(max(f.pause, wait))
		f.pause = min(f.pause*2, watchPauseMax)
	}
}

// stream reads one stream, from the token on or from the initial state, until it is cut.
func (f *follower) stream(ctx context.Context, client pb.SipTrunkServiceClient) error {
	trunks := f.trunks
	if f.token == "" {
		trunks = map[string]*pb.SipTrunk{}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(silenceMax, cancel)
	defer silence.Stop()
	call, err := client.WatchSipTrunks(ctx, &pb.WatchSipTrunksRequest{
		ResumeToken: f.token, InitialState: f.token == "",
	})
	if err != nil {
		return err
	}
	for {
		response, err := call.Recv()
		if err != nil {
			return err
		}
		silence.Reset(silenceMax)
		f.pause = watchPauseMin
		for _, event := range response.Events {
			take(trunks, event)
		}
		if response.ResumeToken != "" {
			// What has no token yet is not complete: it is kept only once it is.
			f.trunks, f.token = trunks, response.ResumeToken
		}
		if response.InitialStateComplete {
			fmt.Printf("%d trunks\n", len(trunks))
		}
	}
}

// take does what an event says. It may come twice, so doing it twice must be the same.
func take(trunks map[string]*pb.SipTrunk, event *pb.SipTrunkEvent) {
	trunk := event.SipTrunk
	if event.Kind == pb.SipTrunkEvent_DELETED {
		delete(trunks, trunk.GetId())
	} else {
		trunks[trunk.GetId()] = trunk
	}
	fmt.Printf("%s %s revision=%d etag=%s\n", event.Kind, trunk.GetId(), event.Revision, trunk.GetEtag())
}
