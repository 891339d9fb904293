package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "example.com/trunks/siptrunkv1"
)

const (
	callTime  = 10 * time.Second
	wholeTime = 60 * time.Second
	pauseMin  = 100 * time.Millisecond
	pauseMax  = 5 * time.Second
	readsMax  = 5
)

// later has what does not tell what became of a call; a server that ends may say Canceled.
var later = []codes.Code{codes.Unavailable, codes.Canceled, codes.DeadlineExceeded}

// answered sends a request as it is until it is known what became of it.
func answered[Request, Answer any](
	ctx context.Context,
	method func(context.Context, *Request, ...grpc.CallOption) (*Answer, error),
	request *Request,
) (*Answer, error) {
	giveUp := time.Now().Add(wholeTime)
	for pause := pauseMin; ; pause = min(pause*2, pauseMax) {
		one, done := context.WithTimeout(ctx, callTime)
		answer, err := method(one, request)
		done()
		wait, again := againAfter(err, pause)
		if err == nil || !again || ctx.Err() != nil || time.Now().Add(wait).After(giveUp) {
			return answer, err
		}
		time.Sleep(wait + mathrand.N(wait/2+1))
	}
}

// againAfter tells how long to wait before the same request is sent again, if that is any use.
func againAfter(err error, pause time.Duration) (time.Duration, bool) {
	asked, known := retryDelay(err)
	switch code := status.Code(err); {
	case slices.Contains(later, code):
		return max(pause, asked), true
	case code == codes.ResourceExhausted || reason(err) == "REQUEST_IN_FLIGHT":
		return asked, known
	}
	return 0, false
}

// qualify sets one field of the trunk that has the etag; where it has changed, it looks again.
func qualify(
	ctx context.Context, client pb.SipTrunkServiceClient, id, etag string, seconds int32,
) (*pb.SipTrunk, error) {
	for range readsMax {
		trunk, err := answered(ctx, client.UpdateSipTrunk, &pb.UpdateSipTrunkRequest{
			SipTrunk: &pb.SipTrunk{
				Id: &id, Etag: &etag, QualifyFrequency: proto.Int32(seconds),
			},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"qualify_frequency"}},
			RequestId:  rand.Text(),
		})
		if status.Code(err) != codes.Aborted {
			return trunk, err
		}
		trunk, err = answered(ctx, client.GetSipTrunk, &pb.GetSipTrunkRequest{Id: id})
		if err != nil {
			return nil, err
		}
		if !trunk.GetIsActive() {
			return nil, errors.New("switched off meanwhile: left as it is")
		}
		etag = trunk.GetEtag()
	}
	return nil, fmt.Errorf("changed by others %d times in a row", readsMax)
}

// change changes a trunk and prints what it is now.
func change(ctx context.Context, client pb.SipTrunkServiceClient, id, etag string, seconds int32) error {
	if etag == "" {
		trunk, err := answered(ctx, client.GetSipTrunk, &pb.GetSipTrunkRequest{Id: id})
		if err != nil {
			return err
		}
		etag = trunk.GetEtag()
	}
	trunk, err := qualify(ctx, client, id, etag, seconds)
	if err != nil {
		return err
	}
	fmt.Printf("qualify_frequency=%d etag=%s\n", trunk.GetQualifyFrequency(), trunk.GetEtag())
	return nil
}
