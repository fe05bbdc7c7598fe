"""The leaderboard of robust speech emotion recognition: entries, the attacks that judge them, their verification."""
