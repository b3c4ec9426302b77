#!lua flags=allow-oom
-- page: one page of a sorted set in order of (score, member), after a cursor; it never skips an entry.
-- KEYS: set zset
-- ARGV: since (least score), until_score (first score beyond), limit (entries, at most 1000), cursor_score (empty: from the start), cursor_member
-- Returns: {member, score, ...}
-- Guards: I8
-- Repeat: same answer
-- Cost: O(log n + limit)
local set = KEYS[1]
local since, until_score, limit, cursor_score, cursor_member = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]

if limit < 1 or limit > 1000 then
  return redis.error_reply('PROTOCOL page takes 1 to 1000 entries')
end
local first = redis.call('ZCOUNT', set, '-inf', '(' .. since)
if cursor_score ~= '' then
  -- Where the cursor's entry has left its place, the page starts again with the entries of the same score.
  local at = redis.call('ZSCORE', set, cursor_member)
  if at and tonumber(at) == tonumber(cursor_score) then
    first = math.max(first, redis.call('ZRANK', set, cursor_member) + 1)
  else
    first = math.max(first, redis.call('ZCOUNT', set, '-inf', '(' .. cursor_score))
  end
end
local last = redis.call('ZCOUNT', set, '-inf', '(' .. until_score) - 1
last = math.min(last, first + limit - 1)
if last < first then
  return {}
end
return redis.call('ZRANGE', set, first, last, 'WITHSCORES')
