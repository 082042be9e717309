# Writes an archive of one file or directory to standard output.
# Arguments: the path; for one file in that directory, its path there.
fail() { printf 'mvm-cp:%s:%s:%s\n' "$1" "$2" "$3" >&2; exit 41; }
unset CDPATH
command -v tar >/dev/null || fail other 'the guest has no tar' ''
[ -e "$1" ] || fail source-not-found 'there is no such file or directory' "$1"
if [ -n "${2-}" ]; then
	cd "$1" || fail other 'it cannot be entered' "$1"
	exec tar -cf - "$2"
elif [ -d "$1" ]; then
	cd "$1" || fail other 'it cannot be entered' "$1"
	exec tar -cf - .
elif [ -f "$1" ]; then
	cd "${1%/*}/" || fail other 'its directory cannot be entered' "$1"
	exec tar -chf - "./${1##*/}"
fi
fail other 'it is neither a file nor a directory' "$1"
