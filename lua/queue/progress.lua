#!lua flags=allow-oom
-- progress: notes how far running jobs are; a stale token notes nothing.
-- KEYS: claims hash, progress hash
-- ARGV: count (jobs, at most 1000); then per job: id, token, progress (JSON)
-- Returns: {per job: 1 noted | 0 lease lost}
-- Guards: I3 I8
-- Repeat: same answer
-- Cost: O(1) per job
local claims, progress = KEYS[1], KEYS[2]
local count = tonumber(ARGV[1])
local FIRST, FIELDS = 2, 3

if count < 1 or count > 1000 or #ARGV ~= FIRST - 1 + count * FIELDS then
  return redis.error_reply('PROTOCOL progress takes 1 to 1000 jobs of 3 fields')
end

local ids, answers, noted = {}, {}, {}
for index = 1, count do
  ids[index] = ARGV[FIRST + FIELDS * (index - 1)]
end
redis.call('HLEN', progress)
for index, row in ipairs(redis.call('HMGET', claims, unpack(ids))) do
  local at = FIRST + FIELDS * (index - 1)
  local token = ARGV[at + 1]
  if row and string.sub(row, 1, #token + 1) == token .. ':' then
    table.insert(noted, ids[index])
    table.insert(noted, ARGV[at + 2])
    answers[index] = 1
  else
    answers[index] = 0
  end
end
if #noted > 0 then
  redis.call('HSET', progress, unpack(noted))
end
return answers
