#!lua flags=allow-oom
-- expose: says that a job on its last chance starts now, alone among its like: a crash from here on is its own.
-- KEYS: claims hash
-- ARGV: id, token
-- Returns: 1 exposed | 0 lease lost
-- Guards: I2 I3 I8
-- Repeat: same answer
-- Cost: O(1)
local claims = KEYS[1]
local id, token = ARGV[1], ARGV[2]
--@include number
--@include row

local row = redis.call('HGET', claims, id)
if not row or string.sub(row, 1, #token + 1) ~= token .. ':' then
  return 0
end
local _, attempt, failures, crashes, place = parse_row(row, id)
redis.call('HSET', claims, id, make_row(token, attempt, failures, crashes % WAITING, place))
return 1
