-- Oldest schema version whose servers may go on: 0003.
-- How many trunks a gateway or an address is on is found out when it is asked for (store/listing.py);
-- the planner's knowledge of it, for which a million trunks were read at each ANALYZE, is of no use.
ALTER INDEX trunks_gateway_keys ALTER COLUMN 1 SET STATISTICS -1;
ALTER INDEX trunks_ip_keys ALTER COLUMN 1 SET STATISTICS -1;
