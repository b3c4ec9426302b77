#!lua flags=allow-oom
-- inspect: what is known of some jobs, as one moment.
-- KEYS: jobs hash, results hash, history hash, progress hash, claims hash, scheduled zset, ready zset, running zset, started zset, open zset, done zset, dead zset
-- ARGV: count (jobs, at most 1000); then per job: id
-- Returns: per job nil, or {state, score in that state's set, submitted ms or nil, started ms or nil, claims row or nil, results row or nil, envelope or nil, history or nil, progress or nil}
-- Guards: I8
-- Repeat: same answer
-- Cost: O(1) per job
local jobs, results, history, progress, claims, scheduled, ready, running, started, open, done, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local count = tonumber(ARGV[1])
local FIRST = 2

if count < 1 or count > 1000 or #ARGV ~= FIRST - 1 + count then
  return redis.error_reply('PROTOCOL inspect takes 1 to 1000 jobs')
end

local ids = {}
for index = 1, count do
  ids[index] = ARGV[FIRST + index - 1]
end
local scores = {}
for state, set in pairs({scheduled = scheduled, ready = ready, running = running, done = done, dead = dead}) do
  scores[state] = redis.call('ZMSCORE', set, unpack(ids))
end
local submitted = redis.call('ZMSCORE', open, unpack(ids))
local starts = redis.call('ZMSCORE', started, unpack(ids))
local rows = redis.call('HMGET', claims, unpack(ids))
local lines = redis.call('HMGET', results, unpack(ids))
local histories = redis.call('HMGET', history, unpack(ids))
local progresses = redis.call('HMGET', progress, unpack(ids))
local envelopes = redis.call('HMGET', jobs, unpack(ids))
local answers = {}
for index = 1, count do
  answers[index] = false
  for state, of_state in pairs(scores) do
    if of_state[index] then
      answers[index] = {
        state, of_state[index], submitted[index] or false, starts[index] or false, rows[index] or false,
        lines[index] or false, envelopes[index] or false, histories[index] or false, progresses[index] or false,
      }
    end
  end
end
return answers
