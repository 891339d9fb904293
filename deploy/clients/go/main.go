// Trunks changes how often a trunk is qualified, once, whatever happens on the way; or keeps the
// account's trunks in memory and prints each change.
//
//	trunks change ADDRESS TRUNK_ID SECONDS [ETAG]
//	trunks watch ADDRESS
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	pb "example.com/trunks/siptrunkv1"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		for _, v := range violations(err) {
			fmt.Fprintf(os.Stderr, "%s [%s] %s\n", v.Field, v.Reason, v.Description)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	if len(arguments) < 2 {
		return fmt.Errorf("usage: trunks change ADDRESS TRUNK_ID SECONDS [ETAG] | watch ADDRESS")
	}
	connection, err := connected(arguments[1])
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewSipTrunkServiceClient(connection)
	switch command, rest := arguments[0], arguments[2:]; {
	case command == "watch" && len(rest) == 0:
		return (&follower{pause: watchPauseMin}).follow(ctx, client)
	case command == "change" && (len(rest) == 2 || len(rest) == 3):
		seconds, err := strconv.ParseInt(rest[1], 10, 32)
		if err != nil {
			return err
		}
		etag := ""
		if len(rest) == 3 {
			etag = rest[2]
		}
		return change(ctx, client, rest[0], etag, int32(seconds))
	}
	return fmt.Errorf("usage: trunks change ADDRESS TRUNK_ID SECONDS [ETAG] | watch ADDRESS")
}
