#!lua flags=allow-oom
-- leave: forgets a runtime that has ended in order, and its orders.
-- KEYS: seen zset, about hash, orders hash
-- ARGV: id
-- Returns: 1 it was noted | 0 it was not
-- Guards: I8
-- Repeat: no second effect
-- Cost: O(log n)
local seen, about, orders = KEYS[1], KEYS[2], KEYS[3]
local id = ARGV[1]

redis.call('ZCARD', seen)
redis.call('HLEN', orders)
redis.call('HDEL', about, id)
redis.call('DEL', orders)
return redis.call('ZREM', seen, id)
